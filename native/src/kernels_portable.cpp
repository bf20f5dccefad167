// kernels_body.h compiled for the portable instruction set.
#include "kernels_body.h"

namespace tampu {

const Kernels& portable_kernels() { return kKernels; }

}  // namespace tampu
