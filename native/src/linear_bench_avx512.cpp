// The machine's peak of 8-bit dot products: a loop of nothing else. In assembly, because compilers put register copies
// between the instructions, and a limit must not be understated.
#include "linear_bench.h"

namespace tampu::detail {

#define TAMPU_DOT(n) "vpdpbusd %%zmm31, %%zmm30, %%zmm" #n "\n\t"

void dot_chain_avx512(long iterations) {
  asm volatile(
      "1:\n\t"
      TAMPU_DOT(0) TAMPU_DOT(1) TAMPU_DOT(2) TAMPU_DOT(3) TAMPU_DOT(4) TAMPU_DOT(5) TAMPU_DOT(6) TAMPU_DOT(7)
      TAMPU_DOT(8) TAMPU_DOT(9) TAMPU_DOT(10) TAMPU_DOT(11) TAMPU_DOT(12) TAMPU_DOT(13) TAMPU_DOT(14) TAMPU_DOT(15)
      "dec %0\n\t"
      "jnz 1b\n\t"
      : "+r"(iterations)
      :
      : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
        "xmm13", "xmm14", "xmm15");
}

}  // namespace tampu::detail
