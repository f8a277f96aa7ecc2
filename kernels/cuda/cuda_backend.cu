// Memory, staging and the operations of cuda_backend.h.
#include <sched.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels/check.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/quarters.h"
#include "kernels/cuda/row_products.h"
#include "kernels/cuda/rows_choice.h"
#include "kernels/device_problem.h"

namespace pq::cuda {
namespace {

constexpr int64_t kStepBytes = int64_t{1} << 20;
constexpr int64_t kRingBytes = kDeviceStagingBytes - kStepBytes;

int64_t tokens_of(const Spans& spans) {
  int64_t tokens = 0;
  for (int64_t i = 0; i < spans.count; ++i) tokens += spans.data[i].tokens;
  return tokens;
}

// Steps whose launches depend on positions by position_bucket alone.
bool one_token_each(const Spans& spans) {
  for (int64_t i = 0; i < spans.count; ++i) {
    if (spans.data[i].tokens != 1) return false;
    for (int64_t j = 0; j < i; ++j) {
      if (spans.data[j].slot == spans.data[i].slot) return false;
    }
  }
  return spans.count > 0;
}

// The spans that hold tokens, cut so that no slot occurs twice in a round: spans of a launch run side by side, and the state that
// one leaves is what the next of its slot begins with.
std::vector<std::vector<Span>> rounds_of(const Spans& spans) {
  std::vector<std::vector<Span>> rounds;
  for (int64_t i = 0; i < spans.count; ++i) {
    const Span& span = spans.data[i];
    if (span.tokens == 0) continue;
    size_t round = 0;
    for (size_t r = 0; r < rounds.size(); ++r) {
      if (std::any_of(rounds[r].begin(), rounds[r].end(), [&](const Span& s) { return s.slot == span.slot; })) round = r + 1;
    }
    if (round == rounds.size()) rounds.emplace_back();
    rounds[round].push_back(span);
  }
  return rounds;
}

// Fewer tokens of a span than this go one by one, so that their key blocks are shared out.
constexpr int64_t kTileWorthwhile = 16;

// Tokens one by one, in the order of their spans, and tiles of several, the longest rows of keys first.
struct AttentionWork {
  Spans rows;  // the call's own, at their address, where each has one token
  std::vector<Span> cut;
  std::vector<Span> tiles;
};

AttentionWork attention_work(const AttentionArgs& args) {
  AttentionWork work;
  work.rows = args.spans;
  if (std::all_of(args.spans.data, args.spans.data + args.spans.count, [](const Span& s) { return s.tokens == 1; })) return work;
  const int64_t most = attention_tile_tokens(args);
  for (int64_t i = 0; i < args.spans.count; ++i) {
    const Span& span = args.spans.data[i];
    const int64_t each = most > 1 && span.tokens >= kTileWorthwhile ? most : 1;
    for (int64_t first = 0; first < span.tokens; first += each) {
      const Span part{.row = span.row + first,
                      .tokens = std::min(each, span.tokens - first),
                      .position = span.position + first,
                      .slot = span.slot};
      (each > 1 ? work.tiles : work.cut).push_back(part);
    }
  }
  std::stable_sort(work.tiles.begin(), work.tiles.end(), [](const Span& a, const Span& b) { return a.position > b.position; });
  work.rows = {work.cut.data(), static_cast<int64_t>(work.cut.size())};
  return work;
}

// each(spans) for every round; spans that are a round as they stand keep their address, by which staged ones are known.
template <typename Each>
void for_rounds(const Spans& spans, const Each& each) {
  const std::vector<std::vector<Span>> rounds = rounds_of(spans);
  if (rounds.size() == 1 && static_cast<int64_t>(rounds[0].size()) == spans.count) return each(spans);
  for (const std::vector<Span>& round : rounds) each({round.data(), static_cast<int64_t>(round.size())});
}

int64_t longest(const Spans& spans) {
  int64_t tokens = 0;
  for (int64_t i = 0; i < spans.count; ++i) tokens = std::max(tokens, spans.data[i].tokens);
  return tokens;
}

std::string size_text(int64_t bytes) {
  const int64_t unit = bytes >= 1'000'000'000 ? 1'000'000'000 : bytes >= 1'000'000 ? 1'000'000 : 1'000;
  const int64_t hundredths = (bytes + unit / 200) / (unit / 100);
  return std::to_string(hundredths / 100) + "." + (hundredths % 100 < 10 ? "0" : "") + std::to_string(hundredths % 100) +
         (unit == 1'000       ? " kB"
          : unit == 1'000'000 ? " MB"
                              : " GB");
}

}  // namespace

CudaBackend::CudaBackend(int device, int64_t memory_limit, int64_t wide_tile_bytes)
    : device_(device), ledger_(std::make_shared<Ledger>()) {
  check(cudaSetDevice(device), "cudaSetDevice");
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  const std::string problem =
      architecture_problem(device, properties.name, properties.major, properties.minor, kernel_image_error());
  if (!problem.empty()) throw Error(ErrorKind::environment, problem);
  multiprocessors_ = properties.multiProcessorCount;
  name_ = std::string("cuda (") + properties.name + ")";
  ledger_->limit = memory_limit;
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  ring_ = allocate(kRingBytes);
  step_area_ = allocate(kStepBytes);
  check(cudaMallocHost(reinterpret_cast<void**>(&ring_host_), kRingBytes), "cudaMallocHost");
  if (wide_tile_bytes == 0) return;
  try {
    wide_ = std::make_unique<WideProducts>(*this, stream_, wide_tile_bytes);
  } catch (...) {
    close();
    throw;
  }
  name_ += ", prefill by " + wide_->gemm().name();
}

CudaBackend::~CudaBackend() { close(); }

void CudaBackend::close() {
  cudaStreamSynchronize(stream_);
  wide_.reset();
  for (const cudaEvent_t event : marks_) cudaEventDestroy(event);
  cudaFreeHost(ring_host_);
  cudaStreamDestroy(stream_);
}

Buffer CudaBackend::allocate(int64_t bytes) {
  if (bytes < 0) throw Error(ErrorKind::internal, "a buffer of " + std::to_string(bytes) + " bytes was asked for");
  if (bytes == 0) return Buffer();
  const auto refuse = [&](const std::string& why) {
    throw Error(ErrorKind::environment, std::string(kNoDeviceMemory) + " for a buffer of " + size_text(bytes) + ": " + why +
                                            "; use more ranks, a shorter context or fewer bits");
  };
  if (ledger_->limit > 0 && bytes > ledger_->limit - ledger_->used)
    refuse(size_text(ledger_->used) + " of the " + size_text(ledger_->limit) + " allowed are taken");
  check(cudaSetDevice(device_), "cudaSetDevice");
  void* data = nullptr;
  if (const cudaError_t result = cudaMalloc(&data, static_cast<size_t>(bytes)); result != cudaSuccess) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    refuse(size_text(static_cast<int64_t>(free)) + " of the device's " + size_text(static_cast<int64_t>(total)) + " are free");
  }
  ledger_->used += bytes;
  ledger_->peak = std::max(ledger_->peak, ledger_->used);
  Buffer buffer(data, bytes, std::shared_ptr<void>(data, [bytes, ledger = ledger_](void* p) {
                  cudaFree(p);
                  ledger->used -= bytes;
                }));
  check(cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), stream_), "cudaMemset");
  return buffer;
}

Buffer CudaBackend::allocate_pinned(int64_t bytes) {
  if (bytes == 0) return Buffer();
  void* data = nullptr;
  if (cudaMallocHost(&data, static_cast<size_t>(bytes)) != cudaSuccess) {
    cudaGetLastError();
    throw Error(ErrorKind::environment, "no pinned host memory for a buffer of " + size_text(bytes));
  }
  std::memset(data, 0, static_cast<size_t>(bytes));
  host_buffers_->insert(data);
  return Buffer(data, bytes, std::shared_ptr<void>(data, [buffers = host_buffers_](void* p) {
                  buffers->erase(p);
                  cudaFreeHost(p);
                }));
}

void* CudaBackend::host_pointer(const Buffer& buffer) const {
  return host_buffers_->count(buffer.data()) > 0 ? buffer.data() : nullptr;
}

void CudaBackend::upload(void* device, const void* host, int64_t bytes) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(device, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_), "cudaMemcpy to the device");
  // The caller may change `host` when this returns.
  synchronize();
}

void CudaBackend::download(void* host, const void* device, int64_t bytes) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_), "cudaMemcpy from the device");
  synchronize();
}

void CudaBackend::zero(void* device, int64_t bytes) {
  if (bytes > 0) check(cudaMemsetAsync(device, 0, static_cast<size_t>(bytes), stream_), "cudaMemset");
}

void CudaBackend::synchronize() {
  const auto start = std::chrono::steady_clock::now();
  const auto watch = [&] { watcher_(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()); };
  while (watcher_ && cudaStreamQuery(stream_) == cudaErrorNotReady) {
    watch();
    sched_yield();
  }
  check(cudaStreamSynchronize(stream_), "a kernel failed; cudaStreamSynchronize");
  if (watcher_) watch();
}

int64_t CudaBackend::ring_place(int64_t bytes) {
  bytes = (bytes + 255) / 256 * 256;
  require(bytes <= kRingBytes, "a call with more rows than its staging memory holds");
  if (ring_used_ + bytes > kRingBytes) {
    // What earlier calls staged may still be on its way.
    synchronize();
    ring_used_ = 0;
  }
  return std::exchange(ring_used_, ring_used_ + bytes);
}

template <typename T>
const T* CudaBackend::stage(const T* host, int64_t count) {
  const size_t bytes = static_cast<size_t>(count) * sizeof(T);
  if constexpr (std::is_same_v<T, Span>) {
    if (host == step_.spans.data && count == step_.spans.count) return step_area_.as<Span>();
  }
  if constexpr (std::is_same_v<T, int32_t>) {
    if (host == step_.ids && count == step_.tokens) return reinterpret_cast<const T*>(step_area_.as<Span>() + step_.spans.count);
  }
  require(!graphs_.recording(), "data that is not the step's in a step that is recorded");
  const int64_t place = ring_place(static_cast<int64_t>(bytes));
  std::memcpy(ring_host_ + place, host, bytes);
  check(cudaMemcpyAsync(ring_.as<char>() + place, ring_host_ + place, bytes, cudaMemcpyHostToDevice, stream_), "cudaMemcpy");
  return reinterpret_cast<const T*>(ring_.as<char>() + place);
}

bool CudaBackend::stage_step(const StepArgs& args) {
  const size_t spans = static_cast<size_t>(args.spans.count) * sizeof(Span),
               ids = static_cast<size_t>(args.tokens) * sizeof(int32_t);
  if (args.spans.count == 0 || static_cast<int64_t>(spans + ids) > kStepBytes) return false;
  char* pinned = ring_host_ + ring_place(static_cast<int64_t>(spans + ids));
  std::memcpy(pinned, args.spans.data, spans);
  if (ids > 0) std::memcpy(pinned + spans, args.ids, ids);
  check(cudaMemcpyAsync(step_area_.data(), pinned, spans + ids, cudaMemcpyHostToDevice, stream_), "cudaMemcpy");
  step_ = args;
  return true;
}

std::string CudaBackend::run_step(const StepArgs& args, const std::function<void()>& body) {
  struct Ended {
    CudaBackend& backend;
    ~Ended() {
      backend.step_ = {};
      backend.decoding_ = false;
    }
  } ended{*this};
  decoding_ = one_token_each(args.spans);
  if (stage_step(args) && args.key.owner != 0 && decoding_) return graphs_.run(args.key, position_bucket(args.spans), body);
  body();
  return {};
}

bool CudaBackend::forget_graphs() {
  if (graphs_.recording()) return false;
  graphs_.forget();
  return true;
}

Buffer CudaBackend::take_mapped(int64_t bytes) {
  const auto kept = std::find_if(mapped_.begin(), mapped_.end(), [&](const Buffer& b) { return b.bytes() == bytes; });
  if (kept == mapped_.end()) return allocate(bytes);
  Buffer buffer = std::move(*kept);
  mapped_.erase(kept);
  return buffer;
}

void CudaBackend::keep_mapped(Buffer buffer) {
  if (buffer.bytes() > 0) mapped_.push_back(std::move(buffer));
}

float* CudaBackend::scratch(int64_t floats) {
  if (scratch_.bytes() < 4 * floats) {
    synchronize();
    graphs_.forget();
    scratch_ = Buffer();
    scratch_ = allocate(4 * floats);
  }
  return scratch_.as<float>();
}

const DeviceCodebook& CudaBackend::device_codebook(const Codebook* book) {
  static const DeviceCodebook kNone;
  if (book == nullptr) return kNone;
  const auto found = codebooks_.find(book);
  if (found != codebooks_.end() && found->second.centroids == book->centroids) return found->second.device;
  const int64_t count = static_cast<int64_t>(book->centroids.size()), half = count / 2;
  std::vector<int16_t> values(static_cast<size_t>(count));
  for (int64_t m = 0; m < half; ++m) {
    const int16_t value = book->int_magnitudes[static_cast<size_t>(m)];
    values[static_cast<size_t>(half + m)] = value;
    values[static_cast<size_t>(half - 1 - m)] = static_cast<int16_t>(-value);
  }
  const auto put = [&](const void* data, int64_t bytes) {
    tables_.push_back(allocate(bytes));
    upload(tables_.back().data(), data, bytes);
    return tables_.back().data();
  };
  DeviceCodebook device;
  device.centroids = static_cast<const float*>(put(book->centroids.data(), 4 * count));
  device.values = static_cast<const int16_t*>(put(values.data(), 2 * count));
  const std::array<int8_t, 16> bytes = make_byte_table(*book);
  device.bytes = static_cast<const int8_t*>(put(bytes.data(), sizeof bytes));
  device.bits = book->bits;
  device.int_step = book->int_step;
  return codebooks_.insert_or_assign(book, Table{book->centroids, device}).first->second.device;
}

void CudaBackend::embed(const EmbedArgs& args) {
  check_embed(args);
  if (args.tokens == 0) return;
  launch_embed(args, stage(args.ids, args.tokens), device_codebook(args.table.codebook).centroids, stream_);
}

void CudaBackend::rms_norm(const RmsNormArgs& args) {
  check_norm(args);
  if (args.rows > 0) launch_rms_norm(args, stream_);
}

void CudaBackend::prepare(const PrepareArgs& args) {
  check_prepare(args);
  if (args.tokens > 0) launch_prepare(args, stream_);
}

void CudaBackend::linear_group(std::span<const LinearArgs> products) {
  require(products.size() <= kLinearGroup, "more products of one input than a launch takes");
  // By width; plain ones, which go with whatever codes there are, at 0.
  std::array<std::vector<RowProduct>, 9> together;
  for (const LinearArgs& args : products) {
    check_linear(args);
    if (args.x.tokens == 0 || args.w.rows == 0) continue;
    if (!widens(args) && row_products_take(args)) {
      const DeviceCodebook& book = device_codebook(args.w.codebook);
      together[args.w.format == WeightFormat::polar ? static_cast<size_t>(book.bits) : 0].push_back({args, &book});
    } else {
      wide_linear(args);
    }
  }
  std::vector<RowProduct>& plain = together[0];
  for (size_t bits = 1; bits < together.size(); ++bits) {
    if (together[bits].empty()) continue;
    together[bits].insert(together[bits].end(), plain.begin(), plain.end());
    plain.clear();
    launch_row_products(together[bits], multiprocessors_, stream_);
  }
  for (const RowProduct& product : plain) wide_linear(product.args);
}

bool CudaBackend::widens(const LinearArgs& args) const { return wide_ != nullptr && !decoding_ && WideProducts::worthwhile(args); }

void CudaBackend::wide_linear(const LinearArgs& args) {
  const DeviceCodebook& book = device_codebook(args.w.codebook);
  const int64_t count = args.x.tokens * args.w.rows;
  float* sums = args.w.units == 1 ? args.y : scratch(args.w.units * count);
  if (widens(args)) {
    wide_->linear(args, sums, book);
  } else if (args.w.format == WeightFormat::polar && args.x.mode == ActivationMode::int8) {
    launch_polar_int8(args, sums, book, stream_);
  } else {
    launch_float_linear(args, sums, book, stream_);
  }
  if (args.w.units > 1) launch_unit_tree(args.y, sums, args.w.units, count, stream_);
}

void CudaBackend::swiglu(const SwigluArgs& args) {
  check_swiglu(args);
  const int64_t count = args.x.tokens * args.gate.rows;
  if (count == 0) return;
  // Behind what the products themselves may need for units.
  const int64_t most = std::max(args.gate.units, args.up.units), units = most > 1 ? most * count : 0;
  float* up = scratch(units + count) + units;
  const LinearArgs products[] = {{.y = args.y, .x = args.x, .w = args.gate}, {.y = up, .x = args.x, .w = args.up}};
  linear_group(products);
  launch_silu_mul(prepare_of(args), up, stream_);
}

void CudaBackend::gated_rms_norm(const GatedRmsNormArgs& args) {
  check_gated_norm(args);
  if (args.rows > 0) launch_gated_rms_norm(args, stream_);
}

void CudaBackend::causal_conv(const CausalConvArgs& args) {
  CausalConvArgs round = args;
  for_rounds(args.spans, [&](const Spans& spans) {
    round.spans = spans;
    launch_causal_conv(round, stage(spans.data, spans.count), stream_);
  });
}

void CudaBackend::gated_delta(const GatedDeltaArgs& args) {
  check_gated_delta(args);
  GatedDeltaArgs round = args;
  for_rounds(args.spans, [&](const Spans& spans) {
    round.spans = spans;
    const bool tensor = wide_ != nullptr && !decoding_ && longest(spans) >= kWideTokens;
    launch_gated_delta(round, stage(spans.data, spans.count), tensor, stream_);
  });
}

void CudaBackend::gated_delta_layer(const GatedDeltaLayerArgs& args) {
  const Spans& spans = args.delta.spans;
  if (!one_token_each(spans) || !delta_step_fits(args.delta)) return Backend::gated_delta_layer(args);
  check_gated_delta_layer(args);
  launch_gated_delta_step(args, stage(spans.data, spans.count), stream_);
}

void CudaBackend::attention_input(const AttentionInputArgs& args) {
  check_attention_input(args);
  const int64_t tokens = tokens_of(args.spans);
  if (tokens > 0) launch_attention_input(args, stage(args.spans.data, args.spans.count), tokens, stream_);
}

void CudaBackend::attention(const AttentionArgs& args) {
  check_attention(args);
  const AttentionWork work = attention_work(args);
  if (const int64_t rows = work.rows.count; rows > 0) {
    const int64_t positions = std::min(position_bucket(work.rows), args.cache.context);
    float* parts = scratch(attention_row_floats(args.heads, args.cache.head_dim, positions, rows));
    launch_attention_rows(args, stage(work.rows.data, rows), rows, positions, parts, stream_);
  }
  if (!work.tiles.empty()) {
    const int64_t tiles = static_cast<int64_t>(work.tiles.size());
    launch_attention_tiles(args, stage(work.tiles.data(), tiles), tiles, stream_);
  }
  const bool joined = work.tiles.empty() && args.cache.head_dim % kBlock == 0;
  if (args.prepared.wanted() && !joined) prepare(prepare_of(args));
}

void CudaBackend::decode(const DecodeArgs& args) {
  check_matrix("decode", args.matrix);
  if (args.matrix.rows > 0) launch_decode(args, device_codebook(args.matrix.codebook), stream_);
}

}  // namespace pq::cuda
