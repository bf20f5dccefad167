// Chooses the kernel table of an instruction set.
#include "tampu/kernels.h"

namespace tampu {

const Kernels& kernels_for(Isa isa) {
#if defined(TAMPU_X86)
  if (isa == Isa::Avx512) return avx512_kernels();
  if (isa == Isa::Avx2 || isa == Isa::AvxVnni) return avx2_kernels();
#endif
  return portable_kernels();
}

}  // namespace tampu
