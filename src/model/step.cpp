// A step as bytes: three counts, then the arrays as they stand in memory. Ranks of one job run one binary, so no byte order is
// fixed.
#include <cstring>

#include "base/error.h"
#include "model/transformer.h"

namespace pq {
namespace {

struct StepHeader {
  int64_t tokens;
  int64_t spans;
  int64_t logit_rows;
};

template <typename T>
void append(std::vector<uint8_t>* bytes, const std::vector<T>& values) {
  const auto* data = reinterpret_cast<const uint8_t*>(values.data());
  bytes->insert(bytes->end(), data, data + values.size() * sizeof(T));
}

template <typename T>
const uint8_t* take(const uint8_t* from, int64_t count, std::vector<T>* values) {
  values->resize(static_cast<size_t>(count));
  if (count > 0) std::memcpy(values->data(), from, values->size() * sizeof(T));
  return from + values->size() * sizeof(T);
}

}  // namespace

std::vector<uint8_t> serialize_step(const Step& step) {
  const StepHeader header{static_cast<int64_t>(step.tokens.size()), static_cast<int64_t>(step.spans.size()),
                          static_cast<int64_t>(step.logit_rows.size())};
  std::vector<uint8_t> bytes(sizeof header);
  std::memcpy(bytes.data(), &header, sizeof header);
  append(&bytes, step.tokens);
  append(&bytes, step.spans);
  append(&bytes, step.logit_rows);
  return bytes;
}

Step parse_step(const std::vector<uint8_t>& bytes) {
  StepHeader header{};
  require(bytes.size() >= sizeof header, "a step message is shorter than its header");
  std::memcpy(&header, bytes.data(), sizeof header);
  constexpr int64_t kLimit = int64_t{1} << 32;
  require(header.tokens >= 0 && header.spans >= 0 && header.logit_rows >= 0 && header.tokens < kLimit && header.spans < kLimit &&
              header.logit_rows < kLimit,
          "a step message has impossible counts");
  const int64_t needed = static_cast<int64_t>(sizeof header) + 4 * (header.tokens + header.logit_rows) +
                         static_cast<int64_t>(sizeof(Span)) * header.spans;
  require(static_cast<int64_t>(bytes.size()) == needed, "a step message has another length than its counts say");
  Step step;
  const uint8_t* from = bytes.data() + sizeof header;
  from = take(from, header.tokens, &step.tokens);
  from = take(from, header.spans, &step.spans);
  take(from, header.logit_rows, &step.logit_rows);
  return step;
}

}  // namespace pq
