// linear_avx2_body.h compiled for AVX2 and FMA.
#include "linear_avx2_body.h"

namespace tampu::detail {

const KernelTable& avx2_kernels() { return kTable; }

}  // namespace tampu::detail
