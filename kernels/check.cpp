// Says which sizes of which operation do not fit together.
#include "kernels/check.h"

#include <fmt/format.h>

#include "base/error.h"

namespace pq {
namespace {

void demand(bool condition, const std::string& message) {
  if (!condition) throw Error(ErrorKind::internal, message);
}

void check_spans(const char* op, const Spans& spans, int64_t context) {
  for (int64_t i = 0; i < spans.count; ++i) {
    const Span& span = spans.data[i];
    demand(span.row >= 0 && span.tokens >= 0 && span.position >= 0 && span.slot >= 0,
           fmt::format("{}: span {} has row {}, tokens {}, position {}, slot {}", op, i, span.row, span.tokens, span.position,
                       span.slot));
    demand(context < 0 || span.position + span.tokens <= context,
           fmt::format("{}: span {} ends at position {} beyond the context of {}", op, i, span.position + span.tokens, context));
  }
}

void check_head_dim(const char* op, const KvCache& cache) {
  demand(cache.head_dim > 0 && cache.head_dim % 16 == 0,
         fmt::format("{}: head_dim {} is not a multiple of 16", op, cache.head_dim));
  demand(cache.type != KvType::q8 || cache.head_dim % kKvGroup == 0,
         fmt::format("{}: head_dim {} is not a multiple of {}, as a q8 cache needs", op, cache.head_dim, kKvGroup));
}

}  // namespace

void check_coded_shape(const char* op, int64_t rows, int64_t cols) {
  demand(rows >= 0 && cols > 0 && cols % kBlock == 0,
         fmt::format("{}: [{}, {}] is not made of blocks of {}", op, rows, cols, kBlock));
}

void check_matrix(const char* op, const Matrix& matrix) {
  const int64_t units = matrix.units;
  demand(units >= 1 && units <= 64 && (units & (units - 1)) == 0,
         fmt::format("{}: {} units is not a power of two up to 64", op, units));
  demand(matrix.cols % units == 0, fmt::format("{}: {} columns do not divide into {} units", op, matrix.cols, units));
  const bool coded = matrix.format == WeightFormat::polar || matrix.format == WeightFormat::int4;
  demand(!coded || matrix.unit_cols() % kBlock == 0,
         fmt::format("{}: a unit of {} columns is not made of blocks of {}", op, matrix.unit_cols(), kBlock));
  demand(!coded || matrix.scales != nullptr, fmt::format("{}: a coded matrix without scales", op));
  demand(matrix.format != WeightFormat::polar || matrix.codebook != nullptr,
         fmt::format("{}: a polar matrix without codebook", op));
}

void check_embed(const EmbedArgs& args) {
  check_matrix("embed", args.table);
  demand(args.table.units == 1, fmt::format("embed: a table of {} units, one is expected", args.table.units));
}

void check_prepare(const PrepareArgs& args) {
  demand(args.dim % kBlock == 0, fmt::format("prepare: dimension {} is not a multiple of {}", args.dim, kBlock));
}

PrepareArgs prepare_of(const RmsNormArgs& args) {
  return {.x = args.y, .tokens = args.rows, .dim = args.dim, .prepared = args.prepared};
}

PrepareArgs prepare_of(const SwigluArgs& args) {
  return {.x = args.y, .tokens = args.x.tokens, .dim = args.gate.rows, .prepared = args.prepared};
}

// Heads may be shorter than a block.
PrepareArgs prepare_of(const GatedRmsNormArgs& args) {
  return {.x = args.y, .tokens = 1, .dim = args.rows * args.dim, .prepared = args.prepared};
}

PrepareArgs prepare_of(const AttentionArgs& args) {
  int64_t tokens = 0;
  for (int64_t i = 0; i < args.spans.count; ++i) tokens += args.spans.data[i].tokens;
  return {.x = args.y, .tokens = tokens, .dim = args.heads * args.cache.head_dim, .prepared = args.prepared};
}

void check_norm(const RmsNormArgs& args) {
  demand((args.added == nullptr) == (args.sum == nullptr), "rms_norm: what is added and the place of the sum go together");
  if (args.prepared.wanted()) check_prepare(prepare_of(args));
}

void check_gated_norm(const GatedRmsNormArgs& args) {
  if (args.prepared.wanted()) check_prepare(prepare_of(args));
}

namespace {

void check_product(const char* op, const Activation& x, const Matrix& w) {
  check_matrix(op, w);
  demand(x.dim == w.cols, fmt::format("{}: input of {} for a matrix of {} columns", op, x.dim, w.cols));
  if (x.tokens == 0) return;
  const bool polar = w.format == WeightFormat::polar;
  const bool present = !polar                          ? x.raw != nullptr
                       : x.mode == ActivationMode::f32 ? x.rotated != nullptr
                                                       : x.codes != nullptr && x.scales != nullptr;
  demand(present, fmt::format("{}: the input lacks the form that this weight format reads", op));
}

}  // namespace

void check_linear(const LinearArgs& args) { check_product("linear", args.x, args.w); }

void check_swiglu(const SwigluArgs& args) {
  check_product("swiglu", args.x, args.gate);
  check_product("swiglu", args.x, args.up);
  demand(args.gate.rows == args.up.rows, fmt::format("swiglu: gate of {} rows, up of {}", args.gate.rows, args.up.rows));
  if (args.prepared.wanted()) check_prepare(prepare_of(args));
}

void check_gated_delta(const GatedDeltaArgs& args) {
  check_spans("gated_delta", args.spans, -1);
  demand(args.key_heads > 0 && args.value_heads % args.key_heads == 0,
         fmt::format("gated_delta: {} value heads do not divide over {} key heads", args.value_heads, args.key_heads));
  demand(args.key_dim % 16 == 0 && args.value_dim % 16 == 0 && args.key_dim > 0 && args.value_dim > 0,
         fmt::format("gated_delta: key_dim {} and value_dim {} must be multiples of 16", args.key_dim, args.value_dim));
}

void check_gated_delta_layer(const GatedDeltaLayerArgs& args) {
  const GatedDeltaArgs& delta = args.delta;
  check_gated_delta(delta);
  check_gated_norm(args.norm);
  int64_t tokens = 0;
  for (int64_t i = 0; i < delta.spans.count; ++i) tokens += delta.spans.data[i].tokens;
  const int64_t channels = 2 * delta.key_heads * delta.key_dim + delta.value_heads * delta.value_dim;
  demand(args.conv.channels == channels && args.norm.dim == delta.value_dim && args.norm.rows == tokens * delta.value_heads,
         fmt::format("gated_delta_layer: {} channels and {} rows of {} around {} tokens of {} and {}", args.conv.channels,
                     args.norm.rows, args.norm.dim, tokens, channels, delta.value_heads * delta.value_dim));
  demand(args.conv.y == delta.qkv && delta.y == args.norm.x && args.conv.spans.data == delta.spans.data &&
             args.conv.spans.count == delta.spans.count,
         "gated_delta_layer: operations that do not follow each other");
}

void check_attention_input(const AttentionInputArgs& args) {
  check_spans("attention_input", args.spans, args.cache.context);
  check_head_dim("attention_input", args.cache);
  demand(args.rotary_dim % 2 == 0 && args.rotary_dim <= args.cache.head_dim,
         fmt::format("attention_input: rotary_dim {} with head_dim {}", args.rotary_dim, args.cache.head_dim));
}

void check_attention(const AttentionArgs& args) {
  check_spans("attention", args.spans, args.cache.context);
  check_head_dim("attention", args.cache);
  demand(args.cache.kv_heads > 0 && args.heads % args.cache.kv_heads == 0,
         fmt::format("attention: {} heads do not divide over {} kv heads", args.heads, args.cache.kv_heads));
  if (args.prepared.wanted()) check_prepare(prepare_of(args));
}

}  // namespace pq
