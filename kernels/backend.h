// The contract of arithmetic: one Args struct and one virtual per operation. Implementations stand side by side (reference, cpu,
// cuda) and one test source runs on all of them. Files, ranks and models are unknown here; the caller owns every buffer.
//
// Conventions that hold for every op unless it says otherwise:
//  * pointers are device pointers of the backend that runs the op (host pointers for reference and cpu);
//  * matrices are row-major and dense; `tokens` is the number of activation rows; activations are fp32;
//  * outputs do not alias inputs; zero tokens is legal and does nothing;
//  * the result for one token does not depend on the other tokens of the call (same accumulation order for every batch);
//  * ops are ordered on the backend's stream; only download and synchronize block.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "kernels/codebook.h"

namespace pq {

// Weights share one norm and one Hadamard rotation per kBlock consecutive inputs.
inline constexpr int64_t kBlock = 128;

// The gated delta rule folds its pending rows into the recurrent state whenever the position after a token is a multiple of
// kDeltaChunk. A constant of the numerics: changing it changes the last bits of every logit.
inline constexpr int64_t kDeltaChunk = 16;

// Attention takes its softmax by blocks of kKeyBlock positions, [0, kKeyBlock) first. A constant of the numerics as well.
inline constexpr int64_t kKeyBlock = 128;

// Earlier inputs that the causal convolution reads, and rows of the ring that holds them: one more, so that the row a token writes
// is none that it reads.
inline constexpr int64_t kConvHistory = 3;
inline constexpr int64_t kConvRows = 4;

// Device memory, freed on destruction; movable. Aligned to at least 256 bytes.
class Buffer {
 public:
  Buffer() = default;
  Buffer(void* data, int64_t bytes, std::shared_ptr<void> owner) : data_(data), bytes_(bytes), owner_(std::move(owner)) {}
  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
  std::shared_ptr<void> owner_;
};

enum class WeightFormat : int {
  f32,    // data: float
  bf16,   // data: uint16_t
  polar,  // data: packed codes, 16 * bits bytes a block (kernels/polar.h); scales: fp16 norm a block
  int4,  // data: 64 bytes a group of 128 (byte i: weight i low nibble, weight 64 + i high nibble); scales (and zeros): bf16 a group
};

// In which order a matrix lies in memory.
enum class WeightLayout : int {
  store,  // as Matrix has it
  tiles,  // of a backend's own making (Backend::arrange), which alone reads it; sizes of the planes are the same
};

// A matrix W [rows, cols] (or the slice of one that a rank owns), stored as `units` consecutive parts along the inputs:
// every plane is [units][rows][cols / units ...]. units = 1 is plain row-major. Points, does not own.
struct Matrix {
  WeightFormat format = WeightFormat::f32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t units = 1;
  const void* data = nullptr;
  const uint16_t* scales = nullptr;    // polar: norms fp16; int4: bf16
  const uint16_t* zeros = nullptr;     // int4 asymmetric: bf16, w = (q - 8) * scale + zero; null: w = (q - 8) * scale
  const Codebook* codebook = nullptr;  // polar; host memory, outlives the matrix
  WeightLayout layout = WeightLayout::store;

  int64_t unit_cols() const { return cols / units; }
  // Bytes of the data plane, and of the scales (= zeros) plane.
  int64_t data_bytes() const;
  int64_t scale_bytes() const;
};

// How the input of coded matrices is represented.
enum class ActivationMode : int {
  f32,   // rotated fp32 against fp32 centroids: for parity tests
  int8,  // rotated, int8 with one fp32 scale a block, against integer centroids
};

// The input of one or more matrices, produced once by `prepare` and shared. Points, does not own.
struct Activation {
  ActivationMode mode = ActivationMode::int8;
  int64_t tokens = 0;
  int64_t dim = 0;
  const float* raw = nullptr;      // [tokens, dim]; what f32, bf16 and int4 matrices read
  const float* rotated = nullptr;  // [tokens, dim], mode f32
  const int8_t* codes = nullptr;   // [tokens, dim], mode int8
  const float* scales = nullptr;   // [tokens, dim / 128], mode int8
};

// Consecutive tokens of one sequence inside a batch: activation rows [row, row + tokens) are positions
// [position, position + tokens) of the sequence held in `slot`. Host memory.
struct Span {
  int64_t row = 0;
  int64_t tokens = 0;
  int64_t position = 0;
  int64_t slot = 0;
};

struct Spans {
  const Span* data = nullptr;
  int64_t count = 0;
};

// y[t] = row ids[t] - first_row of `table` when that lies in [0, table.rows), else zeros; +0.0f is added to each value so that a
// negative zero cannot tell rank counts apart. polar rows are decoded to the original basis. y [tokens, table.cols];
// ids [tokens] host memory. table.units = 1. Reads one row of the table a token.
struct EmbedArgs {
  float* y;
  const int32_t* ids;
  int64_t tokens;
  Matrix table;
  int64_t first_row;
};

// What becomes of the input of coded matrices: mode f32 fills rotated [tokens, dim]; mode int8 fills codes [tokens, dim] and
// scales [tokens, dim / 128]. The others are null. Operations whose y is such an input take one and fill it while y is at hand,
// with the bits of `prepare`; a row of y is then a multiple of 128.
struct Prepared {
  ActivationMode mode = ActivationMode::int8;
  float* rotated = nullptr;
  int8_t* codes = nullptr;
  float* scales = nullptr;
  bool wanted() const { return rotated != nullptr || codes != nullptr; }
};

// y = x / sqrt(mean(x^2) + eps) * (weight_offset + weight) by rows. x, y [rows, dim]; weight [dim] fp32. weight_offset is 1 for the
// zero-centred norms of Qwen3.5 and 0 for plain ones. y may be x. Source: spec of Qwen3.5 §2.1.
// The sum of squares is taken in 16 interleaved lanes (lane l sums elements l, l + 16, ...) folded by halves.
// prepared, when wanted: of y, as PrepareArgs has it. added, when given [rows, dim]: x + added takes the place of x and is left in
// sum [rows, dim], which may be x or y: a residual stream, and what joins it.
struct RmsNormArgs {
  float* y;
  const float* x;
  const float* weight;
  int64_t rows;
  int64_t dim;
  float eps;
  float weight_offset;
  Prepared prepared = {};
  const float* added = nullptr;
  float* sum = nullptr;
};

// Rotation of every 128-block by the orthonormal Sylvester-Hadamard matrix (dim % 128 == 0), then, in mode int8,
// scale = max|v| / 127 and code = round-half-even(v / scale) (scale 0 when the block is 0).
// Butterflies run with distance 1, 2, 4, ..., 64, the factor 1/sqrt(128) last.
struct PrepareArgs {
  const float* x;
  int64_t tokens;
  int64_t dim;
  Prepared prepared;
};

// y[t, r] = sum over cols of W[r, c] * x[t, c]. y [tokens, w.rows]; x.dim == w.cols.
// Order: partial sums of the units are added by a balanced binary tree (w.units a power of two). Inside a unit:
//   polar, int8: blocks in order, acc = fma((float)dot, norm * (scale * codebook.int_step), acc) with the exact int32 dot product
//     of integer centroids and activation codes;
//   polar, f32: blocks in order, acc = fma(dot, norm / sqrt(128), acc), dot in 16 lanes folded by halves;
//   f32, bf16, int4: 16 lanes over the unit's columns, folded by halves; fp32 fma; int4 weights are decoded to fp32 first.
// "Folded by halves": lane l += lane l + 8, then + 4, + 2, + 1.
// Bytes moved: w.data_bytes() + w.scale_bytes() once a call of up to 8 tokens.
// A backend made with BackendOptions::cublas has another contract for calls of many tokens outside steps of single tokens, f32
// matrices aside: weights (polar: centroid * norm / sqrt(128), rotated; int4, bf16) and inputs (codes * scale; rotated; raw) are
// rounded to bfloat16, each by 2^-8 of itself at most, and a unit is their products, which are exact, added in fp32 in an order
// that may depend on the number of tokens and rows. Units are added by the tree.
struct LinearArgs {
  float* y;
  Activation x;
  Matrix w;
};

// Matrices that read one input together: qkv, z, b and a of a delta layer.
inline constexpr int kLinearGroup = 4;

// y = silu(gate x) * (up x), silu(t) = t / (1 + exp(-t)), in one pass over the weights. The products are those of LinearArgs,
// rounded to fp32. y [tokens, gate.rows]; gate and up have one shape and may differ in format. prepared, when wanted: of y.
struct SwigluArgs {
  float* y;
  Activation x;
  Matrix gate;
  Matrix up;
  Prepared prepared = {};
};

// y[t, c] = silu(sum_{j=0..3} w[c, j] * x[t - 3 + j, c]) along each sequence; taps in order j = 0..3 by fma.
// x, y [tokens, channels]; weight [channels, 4]; state [slots][kConvRows][channels]: the input of position p is left in row
// p % kConvRows. A span reads there what lies before it and leaves its last kConvRows inputs; inputs before position 0 are zeros
// whatever the state holds.
struct CausalConvArgs {
  float* y;
  const float* x;
  const float* weight;
  float* state;
  int64_t channels;
  Spans spans;
};

// Per-layer state of the gated delta rule, S at the last multiple of kDeltaChunk and the rows pending since.
struct DeltaState {
  float* s;      // [slots][value_heads][key_dim][value_dim]
  float* k;      // [slots][kDeltaChunk][key_heads][key_dim], normalised keys
  float* delta;  // [slots][kDeltaChunk][value_heads][value_dim]
  float* decay;  // [slots][kDeltaChunk][value_heads], cumulative log-decay G since the multiple
};

// Gated delta rule (Qwen3.5 spec §2.4 steps 3 to 7), written so that a token's bits do not depend on how a sequence was cut:
// with S the state at the last multiple of kDeltaChunk and rows j < i of the current chunk pending,
//   q, k normalised: x / sqrt(sum x^2 + 1e-6), q further * key_dim^-1/2;   beta = sigmoid(b), g = -exp(a_log) softplus(a + dt_bias)
//   G_i = G_{i-1} + g_i
//   delta_i = beta_i (v_i - exp(G_i) S^T k_i - sum_{j<i} exp(G_i - G_j) (k_i . k_j) delta_j)
//   y_i     = exp(G_i) S^T q_i + sum_{j<=i} exp(G_i - G_j) (q_i . k_j) delta_j
// and after row kDeltaChunk - 1: S <- exp(G) S + sum_j exp(G - G_j) k_j delta_j^T, j in order.
// Products S^T x run over key_dim in order by fma from zero; k . k and q . k in 16 lanes folded by halves; the sums over j in order
// by fma. softplus(x) = x for x > 20, else log1p(exp(x)).
// qkv [tokens, 2 * key_heads * key_dim + value_heads * value_dim] after convolution: q heads, k heads, v heads;
// a, b [tokens, value_heads]; a_log, dt_bias [value_heads]; y [tokens, value_heads * value_dim]. Value head h reads key head
// h * key_heads / value_heads. A span at position 0 starts from S = 0 whatever the state holds.
// key_dim and value_dim are multiples of 16.
// A backend made with BackendOptions::cublas has another contract for calls with a span of many tokens outside steps of single
// tokens: the products of several rows and of folding are each within 2^-20 of themselves, and added in fp32 in any order.
struct GatedDeltaArgs {
  float* y;
  const float* qkv;
  const float* a;
  const float* b;
  const float* a_log;
  const float* dt_bias;
  DeltaState state;
  int64_t key_heads;
  int64_t value_heads;
  int64_t key_dim;
  int64_t value_dim;
  Spans spans;
};

// y = rms(x) * weight * silu(gate) by rows of `dim` (one head): norm first, gate after. x, gate, y [rows, dim]; weight [dim],
// plain. y may be x. Sum of squares as in RmsNormArgs. prepared, when wanted: of y; a token's heads follow each other, so
// rows * dim % 128 == 0 is enough.
struct GatedRmsNormArgs {
  float* y;
  const float* x;
  const float* gate;
  const float* weight;
  int64_t rows;
  int64_t dim;
  float eps;
  Prepared prepared = {};
};

// causal_conv, gated_delta and gated_rms_norm in turn, with their bits: conv.y is delta.qkv, delta.y is norm.x, norm.y may be
// norm.x; spans are the same and cover the rows from 0 without a gap. What conv.y holds afterwards, and delta.y unless it is
// norm.y, is left open.
struct GatedDeltaLayerArgs {
  CausalConvArgs conv;
  GatedDeltaArgs delta;
  GatedRmsNormArgs norm;
};

enum class KvType : int { f32, f16, q8 };

// A row of the cache is one head at one position. q8: head_dim int8, then the scales of their groups of kKvGroup, fp16: largest
// magnitude / 127 rounded to fp16, at most 65504; value = scale * int8, the int8 the nearest to x * (1 / scale), ties to even,
// within
// +-127; zeros where the scale is zero. head_dim % kKvGroup == 0.
inline constexpr int64_t kKvGroup = 32;
constexpr int64_t kv_row_bytes(KvType type, int64_t head_dim) {
  return type == KvType::q8 ? head_dim + head_dim / kKvGroup * 2 : head_dim * (type == KvType::f16 ? 2 : 4);
}

// One layer's keys and values: [slots][kv_heads][context] rows of `type`; keys normed and rotated.
struct KvCache {
  KvType type = KvType::f16;
  void* k = nullptr;
  void* v = nullptr;
  int64_t kv_heads = 0;
  int64_t context = 0;
  int64_t head_dim = 0;
};

// From projections to cache: q and k are zero-centred RMS-normed by head (weights q_norm, k_norm [head_dim], 1 + w), rotated on
// the first rotary_dim dimensions in half-split pairs (i, i + rotary_dim / 2) by angle float(position) * inv_freq[i]; k and raw v
// go to the cache at their position. q_gate [tokens, heads, 2 * head_dim] (query then gate of each head); k, v [tokens, kv_heads,
// head_dim]; inv_freq [rotary_dim / 2]; q [tokens, heads, head_dim] receives the rotated queries. Positions < cache.context.
struct AttentionInputArgs {
  float* q;
  const float* q_gate;
  const float* k;
  const float* v;
  const float* q_norm;
  const float* k_norm;
  const float* inv_freq;
  int64_t heads;
  int64_t rotary_dim;
  float eps;
  KvCache cache;
  Spans spans;
};

// Causal attention over the cache, then the output gate: y = softmax(q . k / sqrt(head_dim)) v * sigmoid(gate).
// Query head h reads kv head h * kv_heads / heads. q, y [tokens, heads, head_dim]; q_gate as above. Scores in 16 lanes folded by
// halves, times head_dim^-1/2. Block b of kKeyBlock positions gives its largest score m_b, the sum l_b of exp(score - m_b) in 16
// interleaved lanes folded by halves, and o_b = sum of exp(score - m_b) v over positions in order by fma. Blocks in order join the
// running m, l, o (first -infinity, 0, 0): m' = max(m, m_b), l' = fma(l_b, exp(m_b - m'), l exp(m - m')), o' = fma(o_b, exp(m_b -
// m'), o exp(m - m')). o is divided by l once at the end, then by 1 + exp(-gate). prepared, when wanted: of y, whose rows the spans
// then cover from 0 without a gap.
struct AttentionArgs {
  float* y;
  const float* q;
  const float* q_gate;
  int64_t heads;
  KvCache cache;
  Spans spans;
  Prepared prepared = {};
};

// Quantisation error of a call, to be added up over calls: sum (w - q)^2 and sum w^2, in double.
struct EncodeError {
  double squared_error = 0;
  double squared_norm = 0;
};

// PolarQuant encoder (spec polarquant §1.1) by 128-blocks of w [rows, cols] of type f32, bf16 or f16, cols % 128 == 0. codes:
// packed, [rows][cols / 128][16 * bits]; norms fp16 [rows][cols / 128], raw L2 convention w = norm * c[code] / sqrt(128) rotated
// back. scale_search: per block, multipliers of the norm are tried, the gain refitted by least squares, the one with the least
// squared error kept, the first of equals; without it, codes are the first of the nearest centroids. Sums over a block are taken in
// 16 interleaved lanes folded by halves: the squares and the error in double, the refit in fp32 fma. Errors are added block by
// block within a row, then row by row. Throws ErrorKind::input when a weight is not finite or a norm overflows fp16.
struct PolarEncodeArgs {
  uint8_t* codes;
  uint16_t* norms;
  const void* w;
  int64_t rows;
  int64_t cols;
  const Codebook* codebook;
  bool scale_search;
  EncodeError* error;  // host; may be null
  DType dtype = DType::f32;
};

// INT4 group-128 encoder in the original basis. Symmetric: scale = bf16(max|w| / 7), q = clamp(round(w / scale), -8, 7).
// Asymmetric (zeros not null): scale = bf16((max - min) / 15), zero = bf16(min + 8 * scale), q = clamp(round((w - zero) / scale +
// 8), 0, 15). Rounding half to even. Planes as in WeightFormat::int4. w, the sums of the error and what is refused as in
// PolarEncodeArgs.
struct Int4EncodeArgs {
  uint8_t* codes;
  uint16_t* scales;
  uint16_t* zeros;  // null: symmetric
  const void* w;
  int64_t rows;
  int64_t cols;
  EncodeError* error;
  DType dtype = DType::f32;
};

// w [rows, cols] fp32 from any format, units respected; polar in the original basis.
struct DecodeArgs {
  float* w;
  Matrix matrix;
};

// Names what a step does: steps of equal keys call the same operations in the same order with the same arguments, but for what the
// ids and the positions and slots of the spans say.
struct StepKey {
  int64_t owner = 0;  // of the pointers, unique in the process; 0: the step has no key
  int64_t tokens = 0;
  int64_t first_logits = 0;
  int64_t logits = 0;
  bool operator==(const StepKey&) const = default;
};

// The tokens of a step and the spans they belong to. Host memory; the operations of the step get these very pointers.
struct StepArgs {
  const int32_t* ids = nullptr;
  int64_t tokens = 0;
  Spans spans;
  StepKey key;
};

class Backend {
 public:
  virtual ~Backend() = default;
  // "reference", "cpu (avx512-vnni)", ...
  virtual std::string name() const = 0;

  // Zero-filled. Throws ErrorKind::environment naming the size when memory is short.
  virtual Buffer allocate(int64_t bytes) = 0;
  // The pointer a host may read and write directly, or null when device memory is not host memory.
  virtual void* host_pointer(const Buffer& buffer) const = 0;
  virtual void upload(void* device, const void* host, int64_t bytes) = 0;
  virtual void download(void* host, const void* device, int64_t bytes) = 0;
  virtual void zero(void* device, int64_t bytes) = 0;
  virtual void synchronize() = 0;

  // Runs a step: body calls operations of this backend, and nothing else that has an effect on the device but sums on its stream. A
  // backend may pass the ids and spans to its device once, and may do again what body did at an earlier step of the same key,
  // instead of calling it. Returns a line for the log, at most once, where that is impossible contrary to expectation.
  virtual std::string run_step(const StepArgs&, const std::function<void()>& body) {
    body();
    return {};
  }

  // Puts a matrix in memory of `allocate` into the order that this backend's operations like best, in place, and says so in
  // matrix->layout; other matrices of the same memory must be told. All operations read both orders, to the same bits. Backends
  // without an order of their own leave it as it is.
  virtual void arrange(Matrix* matrix) { static_cast<void>(matrix); }

  virtual void embed(const EmbedArgs& args) = 0;
  virtual void rms_norm(const RmsNormArgs& args) = 0;
  virtual void prepare(const PrepareArgs& args) = 0;
  virtual void linear(const LinearArgs& args) = 0;
  // Each of the products, to the same bits, in any order; they have one x, and none writes what another does. At most
  // kLinearGroup of them.
  virtual void linear_group(std::span<const LinearArgs> products) {
    for (const LinearArgs& args : products) linear(args);
  }
  virtual void swiglu(const SwigluArgs& args) = 0;
  virtual void causal_conv(const CausalConvArgs& args) = 0;
  virtual void gated_delta(const GatedDeltaArgs& args) = 0;
  virtual void gated_rms_norm(const GatedRmsNormArgs& args) = 0;
  virtual void gated_delta_layer(const GatedDeltaLayerArgs& args);
  virtual void attention_input(const AttentionInputArgs& args) = 0;
  virtual void attention(const AttentionArgs& args) = 0;

  virtual void polar_encode(const PolarEncodeArgs& args) = 0;
  virtual void int4_encode(const Int4EncodeArgs& args) = 0;
  virtual void decode(const DecodeArgs& args) = 0;
};

// How the cpu backend uses its rank's processors; results do not depend on it.
struct BackendOptions {
  std::string isa = {};       // a name of kernels/cpu/isa.h; empty: the fastest this machine has
  int threads = 1;            // the caller included
  std::vector<int> pin = {};  // one CPU a thread, the caller's first; empty: not pinned
  bool spin = false;          // threads wait some tens of microseconds for the next operation before they sleep
  bool cublas = false;  // cuda alone: many tokens by cuBLAS and tensor cores, to bits of their own (LinearArgs, GatedDeltaArgs)
};

// device: "cpu", "reference", or "cuda", the first visible device (others: kernels/plugin.h); the last two ignore all options but
// their own. Throws ErrorKind::usage for other names, ErrorKind::environment when this machine lacks the instruction set or the
// device.
std::unique_ptr<Backend> make_backend(const std::string& device, const BackendOptions& options = {});

}  // namespace pq
