// Linear layers and their activations: memory, checks, the split into parts, and the choice of kernels.
#include "tampu/linear.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#endif

#include "linear_kernels.h"

namespace tampu {
namespace {

using namespace detail;

const KernelTable& kernels(Isa isa) {
#if defined(TAMPU_X86)
  if (isa == Isa::Avx512) return avx512_kernels();
  if (isa == Isa::AvxVnni) return avxvnni_kernels();
  if (isa == Isa::Avx2) return avx2_kernels();
#endif
#if defined(TAMPU_ARM64)
  if (isa == Isa::DotProd) return dotprod_kernels();
#endif
  return portable_kernels();
}

// Aligned bytes, on huge pages where the system has them: a pass over the weights touches every page once.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes) {
    constexpr size_t kHugePage = size_t{2} << 20;
    const size_t alignment = bytes >= kHugePage ? kHugePage : 64;
    const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    if (rounded == 0) return;
    data_.reset(static_cast<uint8_t*>(std::aligned_alloc(alignment, rounded)));
    if (!data_) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (alignment == kHugePage) madvise(data_.get(), rounded, MADV_HUGEPAGE);
#endif
  }
  uint8_t* data() { return data_.get(); }
  const uint8_t* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t, Free> data_;
};

void check_block(QType qtype, int k) {
  const BlockLayout& layout = block_layout(qtype);
  if (k <= 0 || k % layout.k != 0) {
    throw std::invalid_argument(std::string(layout.name) + " stores blocks of " + std::to_string(layout.k) +
                                " values, so a row cannot have " + std::to_string(k) + " of them");
  }
}

class RowActivations final : public Activations {
 public:
  RowActivations(Isa isa, ActivationType type) : kernels_(kernels(isa)), default_type_(type) {}

  void require(const Linear& layer) override {
    add_form(layer.activation_type(), layer.precision());
    if (layer.fine_groups().empty()) return;
    if (!fine_groups_.empty() && fine_groups_ != layer.fine_groups())
      throw std::logic_error("activations can have the fine groups of one kind of layer only");
    fine_groups_ = layer.fine_groups();
  }

  void reserve(int max_rows, int k) override {
    if (!float_.needed && !normal_.needed && !high_.needed) add_form(default_type_, Precision::Normal);
    if (max_rows < 0 || k <= 0) throw std::invalid_argument("activations need a positive width");
    if ((normal_.needed || high_.needed) && k % kGroup != 0) {
      throw std::invalid_argument("8-bit activations come in groups of 32, so a row cannot have " + std::to_string(k) +
                                  " values");
    }
    k_ = k;
    max_rows_ = max_rows;
    float_.allocate(max_rows, k, kValuesPerBlock, sizeof(float));
    normal_.allocate(max_rows, k / kGroup, kGroupsPerBlock, sizeof(Int8Record));
    high_.allocate(max_rows, k / kGroup, kGroupsPerBlock, sizeof(Int16Record));
  }

  void set_rows(const float* x, int64_t ldx, int row_begin, int row_end) override {
    if (row_begin < 0 || row_end > max_rows_) throw std::out_of_range("rows beyond what was reserved");
    for (int r = row_begin; r < row_end; ++r) {
      const float* row = x + r * ldx;
      float_.for_blocks(r, k_, [&](int begin, int count, uint8_t* out) {
        std::memcpy(out, row + begin, size_t(count) * sizeof(float));
      });
      normal_.for_blocks(r, k_ / kGroup, [&](int begin, int count, uint8_t* out) {
        kernels_.quantize_normal(row + begin * kGroup, count * kGroup, reinterpret_cast<Int8Record*>(out));
      });
      high_.for_blocks(r, k_ / kGroup, [&](int begin, int count, uint8_t* out) {
        kernels_.quantize_high(row + begin * kGroup, count * kGroup, fine_groups_.data() + begin,
                               reinterpret_cast<Int16Record*>(out));
      });
    }
  }

  // One representation of the rows: units (values or groups) in blocks along K.
  struct Form {
    bool needed = false;
    int units_per_block = 0;
    size_t row_stride = 0, block_stride = 0;
    Buffer buffer;
    void allocate(int rows, int units, int block, size_t unit_bytes) {
      if (!needed) return;
      units_per_block = units < block ? units : block;
      row_stride = size_t(units_per_block) * unit_bytes;
      block_stride = (row_stride * size_t(rows) + 63) / 64 * 64;
      buffer = Buffer(block_stride * size_t((units + block - 1) / block));
    }
    template <class Write>
    void for_blocks(int row, int units, const Write& write) {
      if (!needed) return;
      uint8_t* out = buffer.data() + row_stride * size_t(row);
      for (int begin = 0; begin < units; begin += units_per_block, out += block_stride) {
        write(begin, units - begin < units_per_block ? units - begin : units_per_block, out);
      }
    }
    BlockedRows rows() const { return {buffer.data(), block_stride, row_stride}; }
  };

  const Form& form(ActivationType type, Precision precision) const {
    if (type == ActivationType::F32) return float_;
    return precision == Precision::High ? high_ : normal_;
  }
  int k() const { return k_; }
  int max_rows() const { return max_rows_; }

 private:
  void add_form(ActivationType type, Precision precision) { const_cast<Form&>(form(type, precision)).needed = true; }

  const KernelTable& kernels_;
  ActivationType default_type_;
  int k_ = 0, max_rows_ = 0;
  Form float_, normal_, high_;
  std::vector<uint8_t> fine_groups_;   // of high_
};

struct Segment {
  QType qtype;
  int n;
  int num_panels;
  int first_column;
  size_t panel_bytes;
  Buffer panels;
};

class PanelLinear final : public Linear {
 public:
  PanelLinear(const LinearPart* parts, int num_parts, int k, Isa isa, ActivationType act,
              const std::vector<uint8_t>& fine_groups)
      : kernels_(kernels(isa)), k_(k), type_(act), fine_groups_(fine_groups) {
    if (!isa_available(isa)) throw std::invalid_argument("this machine cannot run the instruction set asked for");
    if (!fine_groups.empty() && fine_groups.size() * kGroup != size_t(k))
      throw std::invalid_argument("there are " + std::to_string(fine_groups.size()) + " flags of groups of 32 for rows of " +
                                  std::to_string(k));
    for (int i = 0; i < num_parts; ++i) {
      check_block(parts[i].qtype, k);
      if (parts[i].n <= 0) throw std::invalid_argument("a linear layer needs at least one output");
      if (!is_quantized(parts[i].qtype)) type_ = ActivationType::F32;
    }
    for (int i = 0; i < num_parts; ++i) add_segment(parts[i]);
  }

  int out_features() const override { return n_; }
  int in_features() const override { return k_; }
  size_t bytes() const override { return bytes_; }
  ActivationType activation_type() const override { return type_; }
  Precision precision() const override { return fine_groups_.empty() ? Precision::Normal : Precision::High; }
  const std::vector<uint8_t>& fine_groups() const override { return fine_groups_; }

  void forward(const Activations& x, int num_rows, float* y, int64_t ldy, Epilogue epilogue, int part,
               int num_parts) const override {
    const auto* rows = dynamic_cast<const RowActivations*>(&x);
    if (rows == nullptr || rows->k() != k_ || num_rows > rows->max_rows() || !rows->form(type_, precision()).needed) {
      throw std::logic_error("these activations were not prepared for this layer");
    }
    if (num_rows <= 0) return;
    if (epilogue == Epilogue::SiluMul) {
      forward_gated(*rows, num_rows, y, ldy, part, num_parts);
      return;
    }
    const int64_t begin = int64_t(num_panels_) * part / num_parts, end = int64_t(num_panels_) * (part + 1) / num_parts;
    int64_t first = 0;   // the segment's first panel
    for (const Segment& s : segments_) {
      const int64_t from = begin > first ? begin - first : 0;
      const int64_t to = end - first < s.num_panels ? end - first : s.num_panels;
      if (from < to) {
        MatmulJob job = job_for(s, *rows, num_rows, static_cast<int>(from), static_cast<int>(to));
        job.y = y + s.first_column;
        job.ldy = ldy;
        job.add = epilogue == Epilogue::Add;
        run(job);
      }
      first += s.num_panels;
    }
  }

  void dequantize_row(int n, float* out) const override {
    if (n < 0 || n >= n_) throw std::out_of_range("no such weight row");
    const Segment* s = &segments_.front();
    while (n >= s->first_column + s->n) ++s;
    const int column = n - s->first_column;
    thread_local std::vector<uint8_t> row;
    row.resize(row_bytes(s->qtype, k_));
    unpack_column(s->qtype, s->panels.data() + size_t(column / kPanel) * s->panel_bytes, column % kPanel, k_,
                  row.data());
    dequantize(s->qtype, row.data(), k_, out);
  }

 private:
  void add_segment(const LinearPart& part) {
    const BlockLayout& layout = block_layout(part.qtype);
    const int num_panels = (part.n + kPanel - 1) / kPanel;
    const size_t panel_bytes = layout.packed_bytes() * size_t(k_ / layout.k);
    const size_t stride = row_bytes(part.qtype, k_);
    Segment s{part.qtype, part.n, num_panels, n_, panel_bytes, Buffer(panel_bytes * size_t(num_panels))};
    for (int p = 0; p < num_panels; ++p) {
      const int columns = part.n - p * kPanel < kPanel ? part.n - p * kPanel : kPanel;
      pack_panel(part.qtype, part.data + size_t(p) * kPanel * stride, stride, columns, k_,
                 s.panels.data() + size_t(p) * panel_bytes);
    }
    bytes_ += panel_bytes * size_t(num_panels);
    n_ += part.n;
    num_panels_ += num_panels;
    segments_.push_back(std::move(s));
  }

  MatmulJob job_for(const Segment& s, const RowActivations& rows, int num_rows, int from, int to) const {
    MatmulJob job{};
    job.qtype = s.qtype;
    job.precision = precision();
    job.panels = s.panels.data();
    job.panel_bytes = s.panel_bytes;
    job.n = s.n;
    job.k = k_;
    job.panel_begin = from;
    job.panel_end = to;
    job.activations = rows.form(type_, precision()).rows();
    job.num_rows = num_rows;
    return job;
  }

  void run(const MatmulJob& job) const {
    (type_ == ActivationType::F32 ? kernels_.matmul_f32 : kernels_.matmul_int8)(job);
  }

  void forward_gated(const RowActivations& rows, int num_rows, float* y, int64_t ldy, int part, int num_parts) const {
    if (segments_.size() != 2 || segments_[0].n != segments_[1].n) {
      throw std::logic_error("SiluMul needs a fused layer of two matrices of one size");
    }
    const int64_t panels = segments_[0].num_panels;
    const int from = static_cast<int>(panels * part / num_parts);
    const int to = static_cast<int>(panels * (part + 1) / num_parts);
    const MatmulJob gate = job_for(segments_[0], rows, num_rows, from, to);
    MatmulJob job = job_for(segments_[1], rows, num_rows, from, to);
    job.y = y;
    job.ldy = ldy;
    job.gate = &gate;
    run(job);
  }

  const KernelTable& kernels_;
  int k_, n_ = 0, num_panels_ = 0;
  ActivationType type_;
  std::vector<uint8_t> fine_groups_;
  size_t bytes_ = 0;
  std::vector<Segment> segments_;
};

}  // namespace

bool isa_available(Isa isa) {
#if defined(TAMPU_X86)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni");
#if defined(TAMPU_AVXVNNI_AS_EVEX)
  const bool avxvnni = avx512;   // the test build's encoding, see CMakeLists.txt
#else
  const bool avxvnni = avx2 && __builtin_cpu_supports("avxvnni");
#endif
  if (isa == Isa::Avx2) return avx2;
  if (isa == Isa::AvxVnni) return avxvnni;
  if (isa == Isa::Avx512) return avx512;
#endif
#if defined(TAMPU_ARM64) && defined(__linux__)
  if (isa == Isa::DotProd) return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(TAMPU_ARM64)
  if (isa == Isa::DotProd) return true;   // every ARM64 Mac has it
#endif
  return isa == Isa::Portable;
}

Isa best_isa() {
  for (const Isa isa : {Isa::Avx512, Isa::AvxVnni, Isa::Avx2, Isa::DotProd})
    if (isa_available(isa)) return isa;
  return Isa::Portable;
}

size_t row_bytes(QType qtype, int k) {
  check_block(qtype, k);
  const BlockLayout& layout = block_layout(qtype);
  return size_t(layout.bytes) * size_t(k / layout.k);
}

std::unique_ptr<Linear> make_linear(QType qtype, const uint8_t* data, int n, int k, Isa isa, ActivationType act,
                                    const std::vector<uint8_t>& fine_groups) {
  const LinearPart part{qtype, data, n};
  return std::make_unique<PanelLinear>(&part, 1, k, isa, act, fine_groups);
}

std::unique_ptr<Linear> make_fused_linear(const LinearPart* parts, int num_parts, int k, Isa isa, ActivationType act,
                                          const std::vector<uint8_t>& fine_groups) {
  if (num_parts <= 0) throw std::invalid_argument("a linear layer needs at least one matrix");
  return std::make_unique<PanelLinear>(parts, num_parts, k, isa, act, fine_groups);
}

std::unique_ptr<Activations> make_activations(Isa isa, ActivationType act) {
  return std::make_unique<RowActivations>(isa, act);
}

void silu_mul(const float* gate_up, int64_t ld, int n, float* out, int64_t ldo, int row_begin, int row_end, Isa isa) {
  const auto row = kernels(isa).silu_mul_row;
  for (int r = row_begin; r < row_end; ++r) row(gate_up + r * ld, gate_up + r * ld + n, n, out + r * ldo);
}

}  // namespace tampu
