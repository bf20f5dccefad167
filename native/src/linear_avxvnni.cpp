// linear_avx2_body.h compiled for AVX2, FMA and AVX-VNNI.
#include "linear_avx2_body.h"

namespace tampu::detail {

const KernelTable& avxvnni_kernels() { return kTable; }

}  // namespace tampu::detail
