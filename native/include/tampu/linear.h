// Linear layers: packed weights times rows of activations. Knows formats and instruction sets; knows no model,
// no attention, no thread pool (the caller splits the work and says which part is meant).
//
// Reproducibility contract: y[r, c] is reduced in an order that depends on nothing but K, the weight format and the
// instruction set: not on the number of rows, the tile a row falls in, the part split or the thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace tampu {

enum class QType { F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q5_K, Q6_K };
// DotProd: ARM64 with sdot. AvxVnni: Avx2 and its 256-bit byte dot products. Avx512: F, BW, VL, DQ, VNNI.
enum class Isa { Portable, DotProd, Avx2, AvxVnni, Avx512 };
enum class ActivationType { Int8, F32 };
// What quantised activations keep of a row, per Linear. Normal: 8 bits per value. High: 16 bits as two 8-bit levels in
// the layer's fine groups of 32 inputs (a second pass over weights already in registers or L1), 8 bits in the others.
enum class Precision { Normal, High };

Isa best_isa();                                  // what this machine can run
bool isa_available(Isa isa);

class Linear;

// Rows of activations in the forms that the layers reading them want. A row is written by set_rows and read by any
// number of Linear::forward calls. Rows are independent: quantisation of a row never looks at another row.
class Activations {
 public:
  virtual ~Activations() = default;
  // Call once, before reserve, for every layer that will read this object: layers differ in form (weights of 16 or 32
  // bits always read f32 rows; Precision::High reads its own). Without any call, the form is that of
  // make_activations' type at Precision::Normal. forward throws std::logic_error where its form is missing, and require
  // where two layers have different fine groups.
  virtual void require(const Linear& layer) = 0;                                        // not thread-safe
  // Throws std::invalid_argument when k does not fit the block of the form (multiples of 32 for Int8).
  virtual void reserve(int max_rows, int k) = 0;                                        // not thread-safe
  virtual void set_rows(const float* x, int64_t ldx, int row_begin, int row_end) = 0;   // thread-safe on disjoint rows
};

// What happens to a finished element.
enum class Epilogue {
  Store,     // y = v
  Add,       // y += v (residual)
  SiluMul,   // fused layer of two matrices of n columns each (gate, up), y[r * ldy + c] = silu(gate_c) * up_c, c < n;
             // the same bits as Store followed by silu_mul, without the memory traffic between them
};

class Linear {
 public:
  virtual ~Linear() = default;
  virtual int out_features() const = 0;          // N
  virtual int in_features() const = 0;           // K
  virtual size_t bytes() const = 0;              // packed weights, as read once per pass
  // What forward computes with: F32 whatever was asked for when the weights have no integer form (F32, F16, BF16).
  virtual ActivationType activation_type() const = 0;
  virtual Precision precision() const = 0;       // High when there are fine groups
  virtual const std::vector<uint8_t>& fine_groups() const = 0;
  // Part p of n (one per thread) takes a contiguous, statically determined range of panels of 32 columns.
  // y[r * ldy + c] for rows 0..num_rows-1 and the columns of this part.
  virtual void forward(const Activations& x, int num_rows, float* y, int64_t ldy, Epilogue epilogue, int part,
                       int num_parts) const = 0;
  // Exact stored value of weight row n as float32 (K values): embedding look-up and tests.
  virtual void dequantize_row(int n, float* out) const = 0;
};

// data: rows of `qtype` blocks as in the file, num_rows = N. Copies and repacks; the caller may drop data afterwards.
// Repacking keeps every stored value exactly. Throws std::invalid_argument naming the format when k is not a multiple
// of its block, and when this machine cannot run `isa`.
// fine_groups: empty, or a flag for each group of 32 inputs: 0 where 8 bits of the activations are enough.
std::unique_ptr<Linear> make_linear(QType qtype, const uint8_t* data, int n, int k, Isa isa, ActivationType act,
                                    const std::vector<uint8_t>& fine_groups = {});
// Several matrices with the same K side by side (q, k, v; gate, up), in this order along N.
struct LinearPart { QType qtype; const uint8_t* data; int n; };
std::unique_ptr<Linear> make_fused_linear(const LinearPart* parts, int num_parts, int k, Isa isa, ActivationType act,
                                          const std::vector<uint8_t>& fine_groups = {});
// Bytes of one row of k weights in the file; throws as make_linear does.
size_t row_bytes(QType qtype, int k);

std::unique_ptr<Activations> make_activations(Isa isa, ActivationType act);

// silu(gate) * up, where gate_up rows are [gate(0..n), up(0..n)]: element-wise, vectorised, for rows [begin, end).
void silu_mul(const float* gate_up, int64_t ld, int n, float* out, int64_t ldo, int row_begin, int row_end, Isa isa);

}  // namespace tampu
