// Timed loops over single operations: matrix products as a step calls them, and the encoders.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <numeric>
#include <set>

#include "base/error.h"
#include "base/random.h"
#include "eval/bench.h"
#include "eval/bench_timing.h"

namespace pq {
namespace {

// Weights that one repetition of a small product reads at least, so that it outlasts the barrier before it.
constexpr int64_t kTrainBytes = int64_t{1} << 26;
// The same on a device, whose clock is good to half a microsecond.
constexpr int64_t kDeviceTrainBytes = int64_t{1} << 30;

// Weights that one repetition of an encoder takes.
constexpr int64_t kEncodeWeights = int64_t{1} << 20;

// One operation on weights of a step: matrices that read one input, or gate and up together.
struct Product {
  std::vector<Matrix> matrices;
  bool swiglu = false;    // of the two matrices, gate and up
  bool prepared = false;  // its result is the input of a coded matrix
};

int64_t bytes_of(const Matrix& m) { return m.data_bytes() + (m.scales ? m.scale_bytes() : 0) + (m.zeros ? m.scale_bytes() : 0); }

int64_t bytes_of(const Product& p) {
  return std::accumulate(p.matrices.begin(), p.matrices.end(), int64_t{0},
                         [](int64_t sum, const Matrix& m) { return sum + bytes_of(m); });
}

int64_t macs_of(const Product& p) {
  return std::accumulate(p.matrices.begin(), p.matrices.end(), int64_t{0},
                         [](int64_t sum, const Matrix& m) { return sum + m.rows * m.cols; });
}

// What products that are measured as one have in common; also their name in the report.
std::string shape_of(const Product& p) {
  const auto format = [](const Matrix& w) {
    return encoding_name({.format = w.format, .bits = w.codebook ? w.codebook->bits : 0, .zeros = w.zeros != nullptr});
  };
  std::vector<std::string> shapes;
  for (const Matrix& m : p.matrices) {
    shapes.push_back(fmt::format("{}x{} {}", m.rows, m.cols, format(m)));
    if (m.units > 1) shapes.back() += fmt::format(" in {} units", m.units);
  }
  if (p.swiglu) return fmt::format("gate and up {}, {}", shapes[0], format(p.matrices[1]));
  return fmt::format("{}", fmt::join(shapes, " with "));
}

// The products of a step in order, by the calls that a step makes.
std::vector<Product> products(const Weights& weights) {
  std::vector<Product> all;
  for (const LayerWeights& layer : weights.layers) {
    const DeltaWeights& d = layer.delta;
    const AttentionWeights& a = layer.attention;
    if (d.in_proj_qkv.data) {
      all.push_back({{d.in_proj_qkv, d.in_proj_z, d.in_proj_b, d.in_proj_a}});
      all.push_back({{d.out_proj}});
    } else {
      all.push_back({{a.q_proj, a.k_proj, a.v_proj}});
      all.push_back({{a.o_proj}});
    }
    all.push_back({{layer.gate_proj, layer.up_proj}, true, layer.down_proj.format == WeightFormat::polar});
    all.push_back({{layer.down_proj}});
  }
  all.push_back({{weights.head}});
  return all;
}

// The same with every matrix by itself, gate and up aside; then those that a step takes together.
std::vector<Product> apart(const std::vector<Product>& calls) {
  const auto together = [](const Product& p) { return !p.swiglu && p.matrices.size() > 1; };
  std::vector<Product> all;
  for (const Product& p : calls) {
    if (!together(p)) all.push_back(p);
    if (!together(p)) continue;
    for (const Matrix& m : p.matrices) all.push_back({{m}});
  }
  std::copy_if(calls.begin(), calls.end(), std::back_inserter(all), together);
  return all;
}

// Inputs of 1 to `tokens` tokens for matrices of any number of columns, and room for their outputs.
class Inputs {
 public:
  Inputs(Backend& backend, ActivationMode mode, int64_t tokens, const std::vector<Product>& products)
      : backend_(backend), mode_(mode) {
    int64_t rows = 1;
    for (const Product& p : products) {
      int64_t all = 0;
      for (const Matrix& m : p.matrices) all += m.rows;
      rows = std::max(rows, all);
      const int64_t cols = p.matrices[0].cols;
      if (!inputs_.count(cols)) inputs_.emplace(cols, make(tokens, cols));
      if (p.prepared) prepared_rows_ = std::max(prepared_rows_, p.matrices[0].rows);
    }
    y_ = backend.allocate(4 * tokens * rows);
    if (prepared_rows_ > 0) prepared_ = make_prepared(tokens, prepared_rows_);
  }

  void multiply(const Product& p, int64_t tokens) {
    const Activation x = activation(p.matrices[0].cols, tokens);
    auto* y = y_.as<float>();
    if (p.swiglu) {
      Prepared prepared{.mode = mode_};
      if (p.prepared) prepared = as_prepared(prepared_);
      backend_.swiglu({.y = y, .x = x, .gate = p.matrices[0], .up = p.matrices[1], .prepared = prepared});
      return;
    }
    std::vector<LinearArgs> args;
    for (const Matrix& m : p.matrices) {
      // A rank may own no rows of the head.
      if (m.rows > 0) args.push_back({.y = y, .x = x, .w = m});
      y += tokens * m.rows;
    }
    if (args.size() == 1) backend_.linear(args[0]);
    if (args.size() > 1) backend_.linear_group(args);
  }

 private:
  struct Coded {
    Buffer rotated;
    Buffer codes;
    Buffer scales;
  };
  struct Input {
    Buffer raw;
    Coded coded;  // where columns are whole blocks
  };

  Coded make_prepared(int64_t tokens, int64_t dim) {
    if (mode_ == ActivationMode::f32) return {.rotated = backend_.allocate(4 * tokens * dim), .codes = {}, .scales = {}};
    return {.rotated = {}, .codes = backend_.allocate(tokens * dim), .scales = backend_.allocate(4 * tokens * dim / kBlock)};
  }

  Prepared as_prepared(const Coded& c) const {
    return {.mode = mode_, .rotated = c.rotated.as<float>(), .codes = c.codes.as<int8_t>(), .scales = c.scales.as<float>()};
  }

  Input make(int64_t tokens, int64_t cols) {
    Input input;
    input.raw = backend_.allocate(4 * tokens * cols);
    Random random(2);
    std::vector<float> values(static_cast<size_t>(tokens * cols));
    for (float& v : values) v = static_cast<float>(random.normal());
    backend_.upload(input.raw.data(), values.data(), 4 * tokens * cols);
    if (cols % kBlock != 0) return input;
    input.coded = make_prepared(tokens, cols);
    backend_.prepare({.x = input.raw.as<float>(), .tokens = tokens, .dim = cols, .prepared = as_prepared(input.coded)});
    return input;
  }

  Activation activation(int64_t cols, int64_t tokens) const {
    const Input& input = inputs_.at(cols);
    const Prepared prepared = as_prepared(input.coded);
    return {.mode = mode_,
            .tokens = tokens,
            .dim = cols,
            .raw = input.raw.as<float>(),
            .rotated = prepared.rotated,
            .codes = prepared.codes,
            .scales = prepared.scales};
  }

  Backend& backend_;
  ActivationMode mode_;
  std::map<int64_t, Input> inputs_;
  int64_t prepared_rows_ = 0;
  Coded prepared_;
  Buffer y_;
};

// Copies of `products` in turn, until all together take `bytes`.
void fill(Backend& backend, int64_t bytes, std::vector<Product>* products, std::vector<Buffer>* buffers) {
  DeviceMeasure* device = device_of(backend);
  const auto copy_plane = [&](const void* plane, int64_t size) -> const void* {
    if (!plane) return nullptr;
    if (device != nullptr && size % 16 == 0) {
      buffers->push_back(backend.allocate(size));
      device->copy(buffers->back().data(), plane, size, false);
      return buffers->back().data();
    }
    std::vector<std::byte> host(static_cast<size_t>(size));
    backend.download(host.data(), plane, size);
    buffers->push_back(backend.allocate(size));
    backend.upload(buffers->back().data(), host.data(), size);
    return buffers->back().data();
  };
  const auto copy = [&](const Matrix& m) {
    Matrix out = m;
    out.data = copy_plane(m.data, m.data_bytes());
    out.scales = static_cast<const uint16_t*>(copy_plane(m.scales, m.scale_bytes()));
    out.zeros = static_cast<const uint16_t*>(copy_plane(m.zeros, m.scale_bytes()));
    return out;
  };
  const size_t given = products->size();
  int64_t held = 0;
  for (const Product& p : *products) held += bytes_of(p);
  if (held == 0) return;
  for (size_t i = 0; held < bytes; ++i) {
    const Product p = (*products)[i % given];
    held += bytes_of(p);
    Product other{{}, p.swiglu, p.prepared};
    for (const Matrix& m : p.matrices) other.matrices.push_back(copy(m));
    products->push_back(other);
  }
}

std::string tokens_text(int64_t tokens) { return fmt::format("{} token{}", tokens, tokens == 1 ? "" : "s"); }

// Rows of the vocabulary that this rank owns, one after the other far apart.
BenchRow bench_embed(const Weights& weights, Backend& backend, Communicator& comm, RoofMeter* meter, int64_t tokens,
                     int64_t repetitions) {
  constexpr int64_t kCalls = 64;
  const Matrix& table = weights.embed;
  const int64_t owned = std::max<int64_t>(1, table.rows);
  Random random(static_cast<uint64_t>(comm.rank()));
  std::vector<int32_t> ids(static_cast<size_t>(kCalls * tokens));
  for (int32_t& id : ids) id = static_cast<int32_t>(weights.vocab_first + random.below(owned));
  const Buffer y = backend.allocate(4 * tokens * table.cols);
  BenchRow row;
  row.name = fmt::format("embed, {}", tokens_text(tokens));
  row.bytes = sum_over_ranks(comm, tokens * (bytes_of(table) / owned + 4 * table.cols));
  for (int64_t i = 0; i < repetitions; ++i) {
    row.read.push_back(meter->read());
    row.seconds.push_back(timed_on(device_of(backend), comm,
                                   [&] {
                                     for (int64_t call = 0; call < kCalls; ++call)
                                       backend.embed({.y = y.as<float>(),
                                                      .ids = &ids[static_cast<size_t>(call * tokens)],
                                                      .tokens = tokens,
                                                      .table = table,
                                                      .first_row = weights.vocab_first});
                                   }) /
                          static_cast<double>(kCalls));
  }
  return row;
}

}  // namespace

std::vector<BenchRow> bench_kernels(const Weights& weights, Backend& backend, Communicator& comm, RoofMeter* meter,
                                    ActivationMode mode, int64_t batch, int64_t working_set_bytes, int64_t repetitions) {
  DeviceMeasure* device = device_of(backend);
  const std::vector<Product> calls = products(weights);
  const std::vector<Product> all = apart(calls);
  // Rank 0 says which products are alike: a rank may own no rows of the head, and all must make the same rows.
  std::vector<int> group(all.size());
  std::map<std::string, int> groups;
  for (size_t i = 0; i < all.size(); ++i)
    group[i] = groups.try_emplace(shape_of(all[i]), static_cast<int>(groups.size())).first->second;
  comm.broadcast(group.data(), static_cast<int64_t>(group.size() * sizeof group[0]));
  const int count = 1 + *std::max_element(group.begin(), group.end());

  const std::set<int64_t> tokens_of_passes{1, 2, 4, 8, batch};
  Inputs inputs(backend, mode, *tokens_of_passes.rbegin(), all);
  std::vector<BenchRow> rows;
  for (int g = 0; g < count; ++g) {
    std::vector<Product> alike;
    for (size_t i = 0; i < all.size(); ++i)
      if (group[i] == g) alike.push_back(all[i]);
    const std::string name = fmt::format("{} times {}", alike.size(), shape_of(alike[0]));
    const int64_t bytes = sum_over_ranks(comm, bytes_of(alike[0]));
    const int64_t macs = sum_over_ranks(comm, macs_of(alike[0]));
    std::vector<Buffer> buffers;
    fill(backend, working_set_bytes, &alike, &buffers);
    size_t next = 0;
    const auto multiply = [&](int64_t passes, int64_t tokens) {
      for (int64_t pass = 0; pass < passes; ++pass) inputs.multiply(alike[next++ % alike.size()], tokens);
    };
    for (const int64_t tokens : tokens_of_passes) {
      BenchRow row;
      row.name = fmt::format("{}, {}", name, tokens_text(tokens));
      row.bytes = bytes;
      row.macs = macs * tokens;
      const int64_t train = device != nullptr ? kDeviceTrainBytes : kTrainBytes;
      const int64_t passes = std::max<int64_t>(1, std::min(train, working_set_bytes) / std::max<int64_t>(bytes, 1) / tokens);
      multiply(1, tokens);
      for (int64_t i = 0; i < repetitions; ++i) {
        row.read.push_back(meter->read());
        row.dot.push_back(meter->dot());
        row.seconds.push_back(timed_on(device, comm, [&] { multiply(passes, tokens); }) / static_cast<double>(passes));
      }
      rows.push_back(row);
    }
  }

  int64_t bytes = 0;
  int64_t macs = 0;
  size_t matrices = 0;
  for (const Product& p : calls) {
    bytes += bytes_of(p);
    macs += macs_of(p);
    matrices += p.swiglu ? 1 : p.matrices.size();
  }
  bytes = sum_over_ranks(comm, bytes);
  macs = sum_over_ranks(comm, macs);
  for (const int64_t tokens : tokens_of_passes) {
    BenchRow row;
    row.name = fmt::format("all {} products of a step, {}", matrices, tokens_text(tokens));
    row.bytes = bytes;
    row.macs = macs * tokens;
    for (int64_t i = 0; i < repetitions; ++i) {
      row.read.push_back(meter->read());
      row.dot.push_back(meter->dot());
      row.seconds.push_back(timed_on(device, comm, [&] {
        for (const Product& p : calls) inputs.multiply(p, tokens);
      }));
    }
    rows.push_back(row);
  }
  for (const int64_t tokens : {int64_t{1}, batch}) rows.push_back(bench_embed(weights, backend, comm, meter, tokens, repetitions));
  return rows;
}

std::vector<BenchRow> bench_encode(const ModelConfig& config, const Encoding& encoding, Backend& backend, Communicator& comm,
                                   int64_t repetitions) {
  const bool polar = encoding.format == WeightFormat::polar;
  require(polar || encoding.format == WeightFormat::int4, "only polar and int4 weights have an encoder");
  std::set<int64_t> inputs;
  for (const TensorSpec& spec : tensor_specs(config))
    if (spec.matrix) inputs.insert(spec.cols);
  Codebook codebook;
  if (polar) codebook = make_codebook(encoding.bits, TableKind::converged);
  std::vector<BenchRow> rows;
  for (const int64_t cols : inputs) {
    Matrix m;
    m.format = encoding.format;
    m.codebook = &codebook;
    m.cols = cols;
    m.rows = std::max<int64_t>(1, kEncodeWeights / cols);
    const Buffer w = backend.allocate(4 * m.rows * m.cols);
    const Buffer codes = backend.allocate(m.data_bytes());
    const Buffer scales = backend.allocate(m.scale_bytes());
    const Buffer zeros = backend.allocate(m.scale_bytes());
    Random random(static_cast<uint64_t>(comm.rank()));
    std::vector<float> values(static_cast<size_t>(m.rows * m.cols));
    for (float& v : values) v = static_cast<float>(0.02 * random.normal());
    backend.upload(w.data(), values.data(), 4 * m.rows * m.cols);
    for (const bool search : {true, false}) {
      if (!polar && search) continue;
      BenchRow row;
      row.name = fmt::format("encode {}x{} as {}{}", m.rows, m.cols, encoding_name(encoding),
                             !polar   ? ""
                             : search ? ", scale search"
                                      : ", plain norms");
      row.weights = sum_over_ranks(comm, m.rows * m.cols);
      EncodeError error;
      for (int64_t i = -1; i < repetitions; ++i) {
        error = {};
        const double seconds = timed(comm, [&] {
          if (polar) {
            backend.polar_encode({.codes = codes.as<uint8_t>(),
                                  .norms = scales.as<uint16_t>(),
                                  .w = w.as<float>(),
                                  .rows = m.rows,
                                  .cols = m.cols,
                                  .codebook = &codebook,
                                  .scale_search = search,
                                  .error = &error});
          } else {
            backend.int4_encode({.codes = codes.as<uint8_t>(),
                                 .scales = scales.as<uint16_t>(),
                                 .zeros = encoding.zeros ? zeros.as<uint16_t>() : nullptr,
                                 .w = w.as<float>(),
                                 .rows = m.rows,
                                 .cols = m.cols,
                                 .error = &error});
          }
          backend.synchronize();
        });
        if (i >= 0) row.seconds.push_back(seconds);
      }
      row.relative_error = sum_over_ranks(comm, error.squared_error) / sum_over_ranks(comm, error.squared_norm);
      rows.push_back(row);
    }
  }
  return rows;
}

}  // namespace pq
