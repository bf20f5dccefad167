// kernels_body.h compiled for the avx512 instruction set.
#include "kernels_body.h"

namespace tampu {

const Kernels& avx512_kernels() { return kKernels; }

}  // namespace tampu
