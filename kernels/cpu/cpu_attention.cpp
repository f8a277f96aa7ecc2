// Cache writing and attention of the cpu backend: cuts the queries and the positions of a call into tiles. The arithmetic is left
// to the leaf kernels.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "kernels/check.h"
#include "kernels/cpu/cpu_backend_impl.h"
#include "kernels/kv_row.h"

namespace pq {
namespace {

// Tokens that pass over a key block together.
constexpr int64_t kQueryTile = 16;

// Less than this is done before another thread wakes.
constexpr int64_t kWorthwhileMacs = int64_t{1} << 19;

// Tokens of a span, query heads of one kv head.
struct AttentionWork {
  int64_t row;       // of the first token in the batch
  int64_t position;  // of the first token
  int64_t tokens;
  int64_t slot;
  int64_t head;  // kv head
  int64_t blocks() const { return (position + tokens + kKeyBlock - 1) / kKeyBlock; }
};

// Longest first, so that the last to start is short.
std::vector<AttentionWork> attention_work(const AttentionArgs& args) {
  std::vector<AttentionWork> work;
  for (int64_t s = 0; s < args.spans.count; ++s) {
    const Span& span = args.spans.data[s];
    for (int64_t t = 0; t < span.tokens; t += kQueryTile) {
      for (int64_t h = 0; h < args.cache.kv_heads; ++h) {
        work.push_back({span.row + t, span.position + t, std::min(kQueryTile, span.tokens - t), span.slot, h});
      }
    }
  }
  std::stable_sort(work.begin(), work.end(), [](const auto& a, const auto& b) { return a.blocks() > b.blocks(); });
  return work;
}

// The running softmax of up to kQueryTile tokens of one kv head; see AttentionTile.
struct RunningSoftmax {
  float* out;
  int64_t out_stride;
  float* largest;
  float* sum;

  void start(int64_t tokens, int64_t heads, int64_t head_dim) const {
    for (int64_t t = 0; t < tokens; ++t) std::fill_n(out + t * out_stride, heads * head_dim, 0.0f);
    std::fill_n(largest, tokens * heads, -INFINITY);
    std::fill_n(sum, tokens * heads, 0.0f);
  }
};

// One call of attention.
class AttentionRun {
 public:
  AttentionRun(const AttentionArgs& args, const Kernels& kernels)
      : args_(args),
        kernels_(kernels),
        dim_(args.cache.head_dim),
        group_(args.heads / args.cache.kv_heads),
        row_bytes_(kv_row_bytes(args.cache.type, args.cache.head_dim)),
        work_(attention_work(args)) {}

  int64_t count() const { return static_cast<int64_t>(work_.size()); }
  int64_t most_blocks() const { return work_.empty() ? 0 : work_.front().blocks(); }
  int64_t macs() const {
    int64_t positions = 0;
    for (const AttentionWork& w : work_) positions += w.tokens * (w.position + w.tokens);
    return 2 * positions * group_ * dim_;
  }
  // Floats: of one work's running sums, of one block's part, of one thread's scratch.
  int64_t state_floats() const { return 2 * kQueryTile * group_; }
  int64_t part_floats() const { return kQueryTile * group_ * (dim_ + 2); }
  int64_t scratch_floats() const { return attention_scratch(group_, kQueryTile, dim_); }

  void start(int64_t i, float* state) const { running(i, state).start(work_[i].tokens, group_, dim_); }

  void whole(int64_t i, float* state, float* scratch) const {
    start(i, state);
    for (int64_t block = 0; block < work_[i].blocks(); ++block) tile(work_[i], block, running(i, state), scratch);
    finish(i, state);
  }

  void part(int64_t i, int64_t block, float* part, float* scratch) const {
    if (block >= work_[i].blocks()) return;
    const RunningSoftmax fresh = part_of(part);
    fresh.start(work_[i].tokens, group_, dim_);
    tile(work_[i], block, fresh, scratch);
  }

  void merge(int64_t i, int64_t block, float* state, float* part) const {
    const AttentionWork& w = work_[i];
    const RunningSoftmax to = running(i, state);
    const RunningSoftmax from = part_of(part);
    // Tokens before the block have nothing of it; a work that ended before has none.
    for (int64_t t = std::max<int64_t>(0, block * kKeyBlock - w.position); t < w.tokens; ++t) {
      kernels_.attention_merge({.out = to.out + t * to.out_stride,
                                .largest = to.largest + t * group_,
                                .sum = to.sum + t * group_,
                                .part = from.out + t * from.out_stride,
                                .part_largest = from.largest + t * group_,
                                .part_sum = from.sum + t * group_,
                                .heads = group_,
                                .head_dim = dim_});
    }
  }

  void finish(int64_t i, float* state) const {
    const AttentionWork& w = work_[i];
    const RunningSoftmax softmax = running(i, state);
    for (int64_t t = 0; t < w.tokens; ++t) {
      const int64_t head = (w.row + t) * args_.heads + w.head * group_;
      kernels_.attention_finish(args_.y + head * dim_, softmax.sum + t * group_, args_.q_gate + head * 2 * dim_ + dim_, group_,
                                dim_);
      if (args_.prepared.wanted())
        kernels_.prepare({.x = args_.y, .tokens = 0, .dim = group_ * dim_, .prepared = args_.prepared}, head / group_);
    }
  }

 private:
  // The weighted values gather in y itself.
  RunningSoftmax running(int64_t i, float* state) const {
    const AttentionWork& w = work_[i];
    return {.out = args_.y + (w.row * args_.heads + w.head * group_) * dim_,
            .out_stride = args_.heads * dim_,
            .largest = state,
            .sum = state + kQueryTile * group_};
  }
  RunningSoftmax part_of(float* part) const {
    float* out = part + 2 * kQueryTile * group_;
    return {.out = out, .out_stride = group_ * dim_, .largest = part, .sum = part + kQueryTile * group_};
  }

  void tile(const AttentionWork& w, int64_t block, const RunningSoftmax& to, float* scratch) const {
    const KvCache& cache = args_.cache;
    const int64_t first = block * kKeyBlock;
    const int64_t plane = ((w.slot * cache.kv_heads + w.head) * cache.context + first) * row_bytes_;
    kernels_.attention({.q = args_.q + (w.row * args_.heads + w.head * group_) * dim_,
                        .q_stride = args_.heads * dim_,
                        .out = to.out,
                        .out_stride = to.out_stride,
                        .largest = to.largest,
                        .sum = to.sum,
                        .k = static_cast<const char*>(cache.k) + plane,
                        .v = static_cast<const char*>(cache.v) + plane,
                        .type = cache.type,
                        .heads = group_,
                        .head_dim = dim_,
                        .tokens = w.tokens,
                        .visible = w.position + 1 - first,
                        .more = block + 1 < w.blocks(),
                        .scratch = scratch});
  }

  const AttentionArgs& args_;
  const Kernels& kernels_;
  int64_t dim_;
  int64_t group_;
  int64_t row_bytes_;
  std::vector<AttentionWork> work_;
};

}  // namespace

// y may be x. cosine, sine [rotary_dim / 2]: the rotation of the position.
void CpuBackend::norm_and_rotate(const AttentionInputArgs& args, float* y, const float* x, const float* weight, const float* cosine,
                                 const float* sine) const {
  kernels_.rms(
      {.y = y, .x = x, .weight = weight, .gate = nullptr, .dim = args.cache.head_dim, .eps = args.eps, .weight_offset = 1.0f});
  const int64_t half = args.rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float low = y[i];
    const float high = y[i + half];
    y[i] = low * cosine[i] - high * sine[i];
    y[i + half] = high * cosine[i] + low * sine[i];
  }
}

// Row `row` of the batch, at `position` of `slot`; scratch [rotary_dim + head_dim].
void CpuBackend::attention_input_row(const AttentionInputArgs& args, int64_t row, int64_t position, int64_t slot,
                                     float* scratch) const {
  const KvCache& cache = args.cache;
  const int64_t dim = cache.head_dim;
  const int64_t half = args.rotary_dim / 2;
  float* cosine = scratch;
  float* sine = cosine + half;
  float* key = sine + half;
  const auto put = [&](void* plane, int64_t kv_row, const float* x) {
    void* to = static_cast<char*>(plane) + kv_row * kv_row_bytes(cache.type, dim);
    switch (cache.type) {
      case KvType::f32:
        std::copy(x, x + dim, static_cast<float*>(to));
        return;
      case KvType::f16:
        return kernels_.store_halves(static_cast<uint16_t*>(to), x, dim);
      case KvType::q8:
        return store_q8_row(to, x, dim);
    }
  };
  for (int64_t i = 0; i < half; ++i) {
    // The angle is an fp32 product; double cosines of it are the same on every C library to the last fp32 bit.
    const double angle = static_cast<float>(position) * args.inv_freq[i];
    cosine[i] = static_cast<float>(std::cos(angle));
    sine[i] = static_cast<float>(std::sin(angle));
  }
  for (int64_t h = 0; h < args.heads; ++h) {
    const int64_t head = row * args.heads + h;
    norm_and_rotate(args, args.q + head * dim, args.q_gate + head * 2 * dim, args.q_norm, cosine, sine);
  }
  for (int64_t h = 0; h < cache.kv_heads; ++h) {
    const int64_t source = (row * cache.kv_heads + h) * dim;
    const int64_t target = (slot * cache.kv_heads + h) * cache.context + position;
    norm_and_rotate(args, key, args.k + source, args.k_norm, cosine, sine);
    put(cache.k, target, key);
    put(cache.v, target, args.v + source);
  }
}

void CpuBackend::attention_input(const AttentionInputArgs& args) {
  check_attention_input(args);
  const int64_t dim = args.cache.head_dim;
  const int64_t size = args.rotary_dim + dim;
  float* scratch = reserve(&attention_area_, pool_.threads() * size);
  for (int64_t s = 0; s < args.spans.count; ++s) {
    const Span& span = args.spans.data[s];
    split(span.tokens, (args.heads + args.cache.kv_heads) * dim * 4, [&](int64_t first, int64_t last, int worker) {
      for (int64_t t = first; t < last; ++t) {
        attention_input_row(args, span.row + t, span.position + t, span.slot, scratch + worker * size);
      }
    });
  }
}

void CpuBackend::attention(const AttentionArgs& args) {
  check_attention(args);
  require(args.heads / args.cache.kv_heads <= kMaxGroupHeads, "attention: more than 64 query heads share a kv head");
  if (args.prepared.wanted() && args.heads / args.cache.kv_heads * args.cache.head_dim % kBlock != 0) {
    // The heads of one work end inside a block that another work goes on with.
    AttentionArgs plain = args;
    plain.prepared = {};
    attention(plain);
    return prepare(prepare_of(args));
  }
  const AttentionRun run(args, kernels_);
  const int64_t count = run.count();
  if (count == 0) return;
  // Where the work does not go round, the blocks of one are computed apart, as many at a time as keep the threads busy.
  const int64_t threads = run.macs() < kWorthwhileMacs ? 1 : pool_.threads();
  const int64_t wave = count % threads == 0 || count >= 4 * threads ? 0 : (8 * threads + count - 1) / count;
  float* scratch =
      reserve(&attention_area_, threads * run.scratch_floats() + count * (run.state_floats() + wave * run.part_floats()));
  float* states = scratch + threads * run.scratch_floats();
  float* parts = states + count * run.state_floats();
  const auto scratch_of = [&](int worker) { return scratch + worker * run.scratch_floats(); };
  const auto state_of = [&](int64_t i) { return states + i * run.state_floats(); };
  const auto part_of = [&](int64_t i, int64_t nth) { return parts + (i * wave + nth) * run.part_floats(); };
  const auto each = [&](int64_t indices, const auto& body) {
    if (threads > 1) return pool_.parallel_for(indices, body);
    for (int64_t i = 0; i < indices; ++i) body(i, 0);
  };
  if (wave == 0) {
    each(count, [&](int64_t i, int worker) { run.whole(i, state_of(i), scratch_of(worker)); });
    return;
  }
  for (int64_t i = 0; i < count; ++i) run.start(i, state_of(i));
  for (int64_t first = 0; first < run.most_blocks(); first += wave) {
    each(count * wave, [&](int64_t index, int worker) {
      run.part(index / wave, first + index % wave, part_of(index / wave, index % wave), scratch_of(worker));
    });
    each(count, [&](int64_t i, int) {
      for (int64_t nth = 0; nth < wave; ++nth) run.merge(i, first + nth, state_of(i), part_of(i, nth));
    });
  }
  each(count, [&](int64_t i, int) { run.finish(i, state_of(i)); });
}

}  // namespace pq
