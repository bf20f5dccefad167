// tampu._native.linear: the kernels as tests and benchmarks see them. The engine itself uses the C++ interface.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "linear_bench.h"
#include "tampu/linear.h"

namespace nb = nanobind;

namespace tampu {
namespace {

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using MutableMatrix = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using NumpyMatrix = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

template <class T>
T by_name(const std::string& name, std::initializer_list<std::pair<const char*, T>> values, const char* what) {
  for (const auto& [key, value] : values) {
    if (name == key) return value;
  }
  throw std::invalid_argument("unknown " + std::string(what) + " '" + name + "'");
}

QType qtype_of(const std::string& name) {
  return by_name<QType>(name,
                        {{"F32", QType::F32}, {"F16", QType::F16}, {"BF16", QType::BF16}, {"Q8_0", QType::Q8_0},
                         {"Q4_0", QType::Q4_0}, {"Q4_1", QType::Q4_1}, {"Q4_K", QType::Q4_K}, {"Q5_K", QType::Q5_K},
                         {"Q6_K", QType::Q6_K}},
                        "weight format");
}

Isa isa_of(const std::string& name) {
  return by_name<Isa>(name,
                      {{"portable", Isa::Portable}, {"dotprod", Isa::DotProd}, {"avx2", Isa::Avx2},
                       {"avxvnni", Isa::AvxVnni}, {"avx512", Isa::Avx512}},
                      "instruction set");
}

ActivationType activation_of(const std::string& name) {
  return by_name<ActivationType>(name, {{"int8", ActivationType::Int8}, {"f32", ActivationType::F32}},
                                 "activation type");
}

NumpyMatrix new_matrix(size_t rows, size_t columns) {
  auto* data = new float[rows * columns]();
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  return NumpyMatrix(data, {rows, columns}, owner);
}

// One packed layer (one or several matrices side by side) with activations of its own.
class Layer {
 public:
  using Part = std::tuple<std::string, nb::bytes, int>;

  Layer(const std::vector<Part>& parts, int k, const std::string& isa, const std::string& activations,
        const nb::bytes& fine_groups)
      : isa_(isa_of(isa)), type_(activation_of(activations)) {
    std::vector<LinearPart> matrices;
    for (const auto& [name, data, n] : parts) {
      const QType qtype = qtype_of(name);
      if (n <= 0 || data.size() != row_bytes(qtype, k) * size_t(n)) {
        throw std::invalid_argument(name + ": " + std::to_string(data.size()) + " bytes are not " + std::to_string(n) +
                                    " rows of " + std::to_string(k));
      }
      matrices.push_back({qtype, reinterpret_cast<const uint8_t*>(data.c_str()), n});
    }
    linear_ = make_fused_linear(matrices.data(), static_cast<int>(matrices.size()), k, isa_, type_,
                                {fine_groups.c_str(), fine_groups.c_str() + fine_groups.size()});
  }

  const Linear& linear() const { return *linear_; }
  Isa isa() const { return isa_; }

  std::unique_ptr<Activations> activations(int rows) const {
    auto a = make_activations(isa_, type_);
    a->require(*linear_);
    a->reserve(std::max(rows, 1), linear_->in_features());
    return a;
  }

  NumpyMatrix forward(const Matrix& x, int num_parts) const {
    NumpyMatrix y = new_matrix(x.shape(0), size_t(linear_->out_features()));
    run(x, y.data(), linear_->out_features(), Epilogue::Store, num_parts);
    return y;
  }

  void forward_add(const Matrix& x, MutableMatrix& y, int num_parts) const {
    if (y.shape(0) != x.shape(0) || y.shape(1) < size_t(linear_->out_features())) {
      throw std::invalid_argument("y is too small");
    }
    run(x, y.data(), int64_t(y.shape(1)), Epilogue::Add, num_parts);
  }

  NumpyMatrix forward_silu_mul(const Matrix& x, int num_parts) const {
    NumpyMatrix y = new_matrix(x.shape(0), size_t(linear_->out_features() / 2));
    run(x, y.data(), linear_->out_features() / 2, Epilogue::SiluMul, num_parts);
    return y;
  }

  NumpyMatrix dequantize(int begin, int end) const {
    NumpyMatrix out = new_matrix(size_t(end - begin), size_t(linear_->in_features()));
    for (int n = begin; n < end; ++n)
      linear_->dequantize_row(n, out.data() + size_t(n - begin) * size_t(linear_->in_features()));
    return out;
  }

 private:
  void run(const Matrix& x, float* y, int64_t ldy, Epilogue epilogue, int num_parts) const {
    if (int(x.shape(1)) != linear_->in_features()) throw std::invalid_argument("x has the wrong width");
    const int rows = static_cast<int>(x.shape(0));
    nb::gil_scoped_release release;  // the embedding runner calls this from several threads
    auto a = activations(rows);
    a->set_rows(x.data(), int64_t(x.shape(1)), 0, rows);
    for (int p = 0; p < num_parts; ++p) linear_->forward(*a, rows, y, ldy, epilogue, p, num_parts);
  }

  Isa isa_;
  ActivationType type_;
  std::unique_ptr<Linear> linear_;
};

NumpyMatrix silu_mul_rows(const Matrix& gate_up, const std::string& isa) {
  if (!isa_available(isa_of(isa))) throw std::invalid_argument("this machine cannot run " + isa);
  const int n = static_cast<int>(gate_up.shape(1) / 2), rows = static_cast<int>(gate_up.shape(0));
  NumpyMatrix out = new_matrix(size_t(rows), size_t(n));
  silu_mul(gate_up.data(), int64_t(gate_up.shape(1)), n, out.data(), n, 0, rows, isa_of(isa));
  return out;
}

std::tuple<double, double> bench(const std::vector<const Layer*>& layers, int rows, int num_threads, double seconds) {
  if (layers.empty() || rows < 1 || num_threads < 1) throw std::invalid_argument("nothing to measure");
  std::vector<const Linear*> linears;
  for (const Layer* layer : layers) {
    linears.push_back(&layer->linear());
    if (linears.back()->out_features() != linears.front()->out_features() ||
        linears.back()->in_features() != linears.front()->in_features())
      throw std::invalid_argument("the layers differ in shape");
  }
  nb::gil_scoped_release release;
  const BenchTimes times = bench_layers(linears, layers.front()->isa(), rows, num_threads, seconds);
  return {times.multiply_s, times.quantize_s};
}

std::vector<std::string> available() {
  std::vector<std::string> names;
  if (isa_available(Isa::Portable)) names.emplace_back("portable");
  if (isa_available(Isa::DotProd)) names.emplace_back("dotprod");
  if (isa_available(Isa::Avx2)) names.emplace_back("avx2");
  if (isa_available(Isa::AvxVnni)) names.emplace_back("avxvnni");
  if (isa_available(Isa::Avx512)) names.emplace_back("avx512");
  return names;
}

}  // namespace

void bind_linear(nb::module_& m) {
  nb::module_ sub = m.def_submodule("linear", "Linear-layer kernels, for tests and benchmarks.");
  sub.def("available_isas", &available);
  sub.def("silu_mul", &silu_mul_rows, nb::arg("gate_up"), nb::arg("isa"));
  sub.def("bench", &bench, nb::arg("layers"), nb::arg("rows"), nb::arg("num_threads"), nb::arg("seconds"),
          "Best (multiply, quantise) seconds of one pass through one of the layers.");
  sub.def("stream_read_bytes_per_s", &stream_read_bytes_per_s, nb::arg("bytes_per_thread"), nb::arg("num_threads"),
          nb::arg("seconds"), nb::call_guard<nb::gil_scoped_release>());
  sub.def("int8_dot_ops_per_s", &int8_dot_ops_per_s, nb::arg("num_threads"), nb::arg("seconds"),
          nb::call_guard<nb::gil_scoped_release>());
  nb::class_<Layer>(sub, "Layer")
      .def(nb::init<const std::vector<Layer::Part>&, int, const std::string&, const std::string&, const nb::bytes&>(),
           nb::arg("parts"), nb::arg("k"), nb::arg("isa"), nb::arg("activations"), nb::arg("fine_groups") = nb::bytes("", 0))
      .def("forward", &Layer::forward, nb::arg("x"), nb::arg("num_parts") = 1)
      .def("forward_add", &Layer::forward_add, nb::arg("x"), nb::arg("y").noconvert(), nb::arg("num_parts") = 1)
      .def("forward_silu_mul", &Layer::forward_silu_mul, nb::arg("x"), nb::arg("num_parts") = 1)
      .def("dequantize", &Layer::dequantize, nb::arg("begin"), nb::arg("end"))
      .def_prop_ro("bytes", [](const Layer& l) { return l.linear().bytes(); })
      .def_prop_ro("out_features", [](const Layer& l) { return l.linear().out_features(); });
}

}  // namespace tampu
