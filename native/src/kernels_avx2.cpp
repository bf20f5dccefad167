// kernels_body.h compiled for the avx2 instruction set.
#include "kernels_body.h"

namespace tampu {

const Kernels& avx2_kernels() { return kKernels; }

}  // namespace tampu
