// The Python face of the native runner. Turns Python values into checked C++ ones and back, and lets
// go of the interpreter while a step runs. Holds no logic of its own.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <climits>
#include <deque>
#include <exception>
#include <functional>
#include <stdexcept>

#include "tampu/llama.h"

namespace nb = nanobind;
using namespace tampu;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class T, size_t N>
T by_name(const std::string& name, const std::pair<const char*, T> (&choices)[N], const char* what) {
  for (const auto& [known, value] : choices)
    if (name == known) return value;
  throw std::invalid_argument(name + " is not a known " + what);
}

constexpr std::pair<const char*, Isa> kIsas[] = {
    {"portable", Isa::Portable}, {"dotprod", Isa::DotProd}, {"avx2", Isa::Avx2}, {"avxvnni", Isa::AvxVnni},
    {"avx512", Isa::Avx512}};
constexpr std::pair<const char*, ActivationType> kActivations[] = {{"int8", ActivationType::Int8},
                                                                   {"f32", ActivationType::F32}};
constexpr std::pair<const char*, KvType> kKvTypes[] = {{"f16", KvType::F16}, {"q8", KvType::Q8}};
constexpr std::pair<const char*, QType> kQTypes[] = {
    {"F32", QType::F32},   {"F16", QType::F16},   {"BF16", QType::BF16}, {"Q8_0", QType::Q8_0}, {"Q4_0", QType::Q4_0},
    {"Q4_1", QType::Q4_1}, {"Q4_K", QType::Q4_K}, {"Q5_K", QType::Q5_K}, {"Q6_K", QType::Q6_K}};
constexpr std::pair<const char*, Llama::Slot> kSlots[] = {
    {"qkv_proj", Llama::Slot::QkvProj},     {"o_proj", Llama::Slot::OProj},
    {"gate_up_proj", Llama::Slot::GateUpProj}, {"down_proj", Llama::Slot::DownProj},
    {"lm_head", Llama::Slot::LmHead},       {"embed_tokens", Llama::Slot::EmbedTokens}};
constexpr std::pair<const char*, Llama::Norm> kNorms[] = {{"input_layernorm", Llama::Norm::Input},
                                                          {"post_attention_layernorm", Llama::Norm::PostAttention},
                                                          {"norm", Llama::Norm::Final}};

// A Python sequence of ints as int32; lists and tuples are read in place.
void read_ints(nb::handle sequence, std::vector<int32_t>& out) {
  nb::object fast = nb::steal(PySequence_Fast(sequence.ptr(), "a sequence of ints is needed"));
  if (!fast.is_valid()) throw nb::python_error();
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(fast.ptr());
  PyObject** items = PySequence_Fast_ITEMS(fast.ptr());
  out.resize(static_cast<size_t>(n));
  for (Py_ssize_t i = 0; i < n; ++i) {
    const long value = PyLong_AsLong(items[i]);
    if (value == -1 && PyErr_Occurred()) throw nb::python_error();
    if (value < INT32_MIN || value > INT32_MAX) throw std::invalid_argument("an id does not fit 32 bits");
    out[static_cast<size_t>(i)] = static_cast<int32_t>(value);
  }
}

TokenMask read_mask(nb::handle mask) {
  if (mask.is_none()) return {};
  char* bytes;
  Py_ssize_t length;
  if (PyByteArray_Check(mask.ptr())) {
    bytes = PyByteArray_AsString(mask.ptr());
    length = PyByteArray_Size(mask.ptr());
  } else if (PyBytes_AsStringAndSize(mask.ptr(), &bytes, &length) != 0) {
    throw nb::python_error();
  }
  return {reinterpret_cast<const uint8_t*>(bytes), static_cast<size_t>(length)};
}

// Asks a Python callable for a row's mask, which it keeps alive; holds the interpreter no longer than that.
class MaskCall {
 public:
  explicit MaskCall(nb::object call) : call_(std::move(call)) {}

  TokenMask operator()() noexcept {
    static constexpr uint8_t kNothing[1] = {};
    nb::gil_scoped_acquire acquire;
    try {
      mask_ = call_();
      return read_mask(mask_);
    } catch (...) {
      error_ = std::current_exception();
      return {kNothing, 0};
    }
  }

  void rethrow_error() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  nb::object call_, mask_;
  std::exception_ptr error_;
};

// (token_ids, position, block_table, SamplingState | None, callable that gives the mask | None) each.
std::vector<StepRun> read_runs(nb::sequence runs, std::deque<MaskCall>& mask_calls) {
  std::vector<StepRun> out;
  out.reserve(nb::len(runs));
  for (nb::handle item : runs) {
    const auto fields = nb::cast<nb::tuple>(item);
    if (fields.size() != 5) throw std::invalid_argument("a run has five fields");
    StepRun run;
    read_ints(fields[0], run.token_ids);
    run.position = nb::cast<int>(fields[1]);
    read_ints(fields[2], run.block_table);
    run.sampling = fields[3].is_none() ? nullptr : nb::cast<const SamplingState*>(fields[3]);
    if (!fields[4].is_none()) run.mask = std::ref(mask_calls.emplace_back(nb::borrow(fields[4])));
    out.push_back(std::move(run));
  }
  return out;
}

// (token_id, None) or (token_id, (logprob, ((id, logprob), ...))).
nb::tuple to_python(const SampledRow& row) {
  if (!row.has_logprobs) return nb::make_tuple(row.token_id, nb::none());
  nb::list top;
  for (const auto& [token_id, logprob] : row.top) top.append(nb::make_tuple(token_id, logprob));
  return nb::make_tuple(row.token_id, nb::make_tuple(row.logprob, nb::tuple(top)));
}

nb::list to_python(const std::vector<SampledRow>& rows) {
  nb::list out;
  for (const SampledRow& row : rows) out.append(to_python(row));
  return out;
}

void construct_llama(Llama* self, int vocab_size, int hidden_size, int intermediate_size, int num_hidden_layers,
                     int num_attention_heads, int num_key_value_heads, int head_dim, float rms_norm_eps,
                     const Floats& inv_freq, bool tie_word_embeddings, int num_threads, int max_num_batched_tokens,
                     int max_num_seqs, const std::string& isa, const std::string& activations,
                     const std::string& kv_cache_dtype) {
  LlamaConfig model{vocab_size,   hidden_size, intermediate_size,
                    num_hidden_layers, num_attention_heads, num_key_value_heads,
                    head_dim,     rms_norm_eps, std::vector<float>(inv_freq.data(), inv_freq.data() + inv_freq.size()),
                    tie_word_embeddings};
  RunnerConfig runner{num_threads, max_num_batched_tokens, max_num_seqs, by_name(isa, kIsas, "instruction set"),
                      by_name(activations, kActivations, "activation type"),
                      by_name(kv_cache_dtype, kKvTypes, "KV cache type")};
  new (self) Llama(std::move(model), runner);
}

void set_linear(Llama& self, const std::string& slot, int layer, nb::sequence tensors, int in_features,
                const nb::bytes& fine_groups) {
  std::vector<LinearPart> parts;
  std::vector<Bytes> kept;
  for (nb::handle item : tensors) {
    const auto [qtype_name, data, n] = nb::cast<std::tuple<std::string, Bytes, int>>(item);
    const QType qtype = by_name(qtype_name, kQTypes, "weight format");
    if (n < 1 || data.size() != static_cast<size_t>(n) * row_bytes(qtype, in_features))
      throw std::invalid_argument("a weight has " + std::to_string(data.size()) + " bytes, which is not " +
                                  std::to_string(n) + " rows of " + std::to_string(in_features) + " " + qtype_name +
                                  " values");
    parts.push_back({qtype, data.data(), n});
    kept.push_back(data);
  }
  const Llama::Slot where = by_name(slot, kSlots, "weight");
  const std::vector<uint8_t> flags(fine_groups.c_str(), fine_groups.c_str() + fine_groups.size());
  nb::gil_scoped_release release;
  self.set_linear(where, layer, parts, in_features, flags);
}

nb::list execute(Llama& self, nb::sequence runs) {
  std::deque<MaskCall> mask_calls;
  const std::vector<StepRun> step = read_runs(runs, mask_calls);
  std::vector<SampledRow> rows;
  {
    nb::gil_scoped_release release;
    rows = self.execute(step);
  }
  for (const MaskCall& call : mask_calls) call.rethrow_error();
  return to_python(rows);
}

void compute_logits(Llama& self, nb::sequence runs, const Rows& out) {
  std::deque<MaskCall> mask_calls;
  const std::vector<StepRun> step = read_runs(runs, mask_calls);
  size_t num_tokens = 0;
  for (const StepRun& run : step) num_tokens += run.token_ids.size();
  if (out.shape(0) != num_tokens || out.shape(1) != static_cast<size_t>(self.config().vocab_size))
    throw std::invalid_argument("out must be [num_tokens, vocab_size]");
  nb::gil_scoped_release release;
  self.compute_logits(step, out.data());
}

void construct_state(SamplingState* self, int vocab_size, int num_prompt_tokens, float temperature, int top_k,
                     double top_p, double min_p, double repetition_penalty, double frequency_penalty,
                     double presence_penalty, uint64_t seed, int num_logprobs,
                     std::vector<std::pair<int32_t, float>> logit_bias) {
  SamplingParams params{temperature,       top_k,            top_p, min_p,        repetition_penalty,
                        frequency_penalty, presence_penalty, seed,  num_logprobs, std::move(logit_bias)};
  new (self) SamplingState(std::move(params), num_prompt_tokens, vocab_size);
}

void observe(SamplingState& self, nb::handle token_ids) {
  std::vector<int32_t> ids;
  read_ints(token_ids, ids);
  self.observe(ids.data(), ids.size());
}

// Samples given rows with the kernels of one instruction set; `logits` is overwritten.
nb::list sample(const Rows& logits, nb::sequence states, const std::vector<int64_t>& positions, nb::sequence masks,
                const std::string& isa) {
  const size_t n = logits.shape(0);
  const int vocab_size = static_cast<int>(logits.shape(1));
  const Isa which = by_name(isa, kIsas, "instruction set");
  if (!isa_available(which)) throw std::invalid_argument("this machine cannot run " + isa);
  if (nb::len(states) != n || positions.size() != n || nb::len(masks) != n)
    throw std::invalid_argument("as many states, positions and masks as rows are needed");
  Sampler sampler(kernels_for(which), vocab_size);
  std::vector<SampledRow> rows;
  for (size_t i = 0; i < n; ++i) {
    const auto* state = nb::cast<const SamplingState*>(states[i]);
    if (state->vocab_size() != vocab_size) throw std::invalid_argument("a sampling state is for another vocabulary");
    const nb::object mask_object = masks[i];
    const TokenMask mask = read_mask(mask_object);
    rows.push_back(sampler.sample(logits.data() + i * logits.shape(1), *state, positions[i], mask.data, mask.size));
  }
  return to_python(rows);
}

size_t kv_block_bytes(const std::string& kv_cache_dtype, int num_layers, int block_size, int num_kv_heads,
                      int head_dim) {
  return KvCache::bytes_per_block(by_name(kv_cache_dtype, kKvTypes, "KV cache type"), num_layers, block_size,
                                  num_kv_heads, head_dim);
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const auto& [name, isa] : kIsas)
    if (isa_available(isa)) names.emplace_back(name);
  return names;
}

}  // namespace

namespace tampu {

void bind_runner(nb::module_& m) {
  m.def("available_isas", &available_isas, "Instruction sets this machine can run, slowest first.");
  m.def("sample", &sample, nb::arg("logits"), nb::arg("states"), nb::arg("positions"), nb::arg("masks"),
        nb::arg("isa"));
  m.def("kv_block_bytes", &kv_block_bytes, nb::arg("kv_cache_dtype"), nb::arg("num_layers"), nb::arg("block_size"),
        nb::arg("num_kv_heads"), nb::arg("head_dim"));

  nb::class_<SamplingState>(m, "SamplingState")
      .def("__init__", &construct_state, nb::kw_only(), nb::arg("vocab_size"), nb::arg("num_prompt_tokens"),
           nb::arg("temperature"), nb::arg("top_k"), nb::arg("top_p"), nb::arg("min_p"),
           nb::arg("repetition_penalty"), nb::arg("frequency_penalty"), nb::arg("presence_penalty"), nb::arg("seed"),
           nb::arg("num_logprobs"), nb::arg("logit_bias"))
      .def("observe", &observe, nb::arg("token_ids"))
      .def_prop_ro("has_penalties", &SamplingState::has_penalties)
      .def_prop_ro("num_observed", &SamplingState::num_observed);

  nb::class_<Llama>(m, "Llama")
      .def("__init__", &construct_llama, nb::kw_only(), nb::arg("vocab_size"), nb::arg("hidden_size"),
           nb::arg("intermediate_size"), nb::arg("num_hidden_layers"), nb::arg("num_attention_heads"),
           nb::arg("num_key_value_heads"), nb::arg("head_dim"), nb::arg("rms_norm_eps"), nb::arg("inv_freq"),
           nb::arg("tie_word_embeddings"), nb::arg("num_threads"), nb::arg("max_num_batched_tokens"),
           nb::arg("max_num_seqs"), nb::arg("isa"), nb::arg("activations"), nb::arg("kv_cache_dtype"))
      .def("set_linear", &set_linear, nb::arg("slot"), nb::arg("layer"), nb::arg("tensors"), nb::arg("in_features"),
           nb::arg("fine_groups") = nb::bytes("", 0))
      .def("set_norm",
           [](Llama& self, const std::string& norm, int layer, const Floats& values) {
             self.set_norm(by_name(norm, kNorms, "norm"), layer, values.data(), static_cast<int>(values.size()));
           },
           nb::arg("norm"), nb::arg("layer"), nb::arg("values"))
      .def("allocate", &Llama::allocate, nb::arg("num_blocks"), nb::arg("block_size"))
      .def("execute", &execute, nb::arg("runs"))
      .def("compute_logits", &compute_logits, nb::arg("runs"), nb::arg("out").noconvert())
      .def("fill_kv_cache", [](Llama& self, uint16_t pattern) { self.kv_cache().fill(pattern); }, nb::arg("pattern"))
      .def_prop_ro("weight_bytes", &Llama::weight_bytes)
      .def_prop_ro("kv_cache_bytes", [](Llama& self) { return self.kv_cache().bytes(); });
}

}  // namespace tampu
