// Names and sizes of element types, checked shape arithmetic.
#include "base/tensor.h"

#include "base/error.h"
#include "base/limits.h"

namespace pq {
namespace {

struct DTypeRow {
  DType dtype;
  const char* name;
  int64_t bytes;
};

constexpr DTypeRow kRows[] = {{DType::f32, "F32", 4}, {DType::bf16, "BF16", 2}, {DType::f16, "F16", 2}, {DType::i8, "I8", 1},
                              {DType::u8, "U8", 1},   {DType::i32, "I32", 4},   {DType::i64, "I64", 8}};

const DTypeRow& row(DType dtype) {
  for (const DTypeRow& r : kRows)
    if (r.dtype == dtype) return r;
  throw Error(ErrorKind::internal, "unknown element type");
}

}  // namespace

int64_t dtype_bytes(DType dtype) { return row(dtype).bytes; }
const char* dtype_name(DType dtype) { return row(dtype).name; }

bool try_parse_dtype(std::string_view name, DType* dtype) {
  for (const DTypeRow& r : kRows) {
    if (name == r.name) {
      *dtype = r.dtype;
      return true;
    }
  }
  return false;
}

int64_t checked_count(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t dim : shape) {
    int64_t product = 0;
    if (dim < 0 || __builtin_mul_overflow(count, dim, &product) || product > kMaxTensorElements)
      throw Error(ErrorKind::input, "shape " + shape_text(shape) + " has a negative or too large dimension");
    count = product;
  }
  return count;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace pq
