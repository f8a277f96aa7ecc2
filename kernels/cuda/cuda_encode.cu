// The encoders of cuda_backend.h: their tables and reports on the device, and what is refused.
#include <cstring>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/encode.h"

namespace pq::cuda {

template <typename Args, typename Launch>
void CudaBackend::encode(const char* op, const Args& args, const Launch& launch) {
  check_encode(op, args.dtype, args.rows, args.cols);
  if (args.error != nullptr) *args.error = {};
  if (args.rows == 0) return;
  const int64_t row_blocks = args.cols / kBlock;
  const bool errors = args.error != nullptr;
  // The first failure and the rows lie together: what the host reads.
  const int64_t row_errors = errors ? args.rows : 0;
  const int64_t head = static_cast<int64_t>(sizeof(EncodeError)) * (1 + row_errors);
  const int64_t bytes = head + (errors ? static_cast<int64_t>(sizeof(EncodeError)) * args.rows * row_blocks : 0);
  if (encode_report_.bytes() < bytes) {
    synchronize();
    encode_report_ = Buffer();
    encode_report_ = allocate(bytes);
  }
  auto* base = encode_report_.as<char>();
  check(cudaMemsetAsync(base, 0xff, sizeof(EncodeError), stream_), "cudaMemset");
  launch(EncodeReport{.failed = reinterpret_cast<unsigned long long*>(base),
                      .rows = errors ? reinterpret_cast<EncodeError*>(base) + 1 : nullptr,
                      .blocks = errors ? reinterpret_cast<EncodeError*>(base + head) : nullptr});
  std::vector<EncodeError> report(static_cast<size_t>(1 + row_errors));
  download(report.data(), base, head);
  unsigned long long failed;
  std::memcpy(&failed, report.data(), sizeof failed);
  if (failed < static_cast<unsigned long long>(args.rows * row_blocks)) {
    const auto block = static_cast<int64_t>(failed);
    const int64_t block_bytes = kBlock * dtype_bytes(args.dtype);
    std::vector<uint8_t> weights(static_cast<size_t>(block_bytes));
    download(weights.data(), static_cast<const uint8_t*>(args.w) + block * block_bytes, block_bytes);
    refuse_block(op, weights.data(), args.dtype, block / row_blocks, block % row_blocks * kBlock);
  }
  for (int64_t row = 0; row < row_errors; ++row) {
    args.error->squared_error += report[static_cast<size_t>(1 + row)].squared_error;
    args.error->squared_norm += report[static_cast<size_t>(1 + row)].squared_norm;
  }
}

void CudaBackend::polar_encode(const PolarEncodeArgs& args) {
  EncodeTableCopy& table = encode_tables_[args.codebook];
  // Another table may come to lie at the address of one that is gone.
  if (table.centroids != args.codebook->centroids) {
    const EncodeTable host = make_encode_table(*args.codebook, 0, 0);
    if (table.device.bytes() == 0) table.device = allocate(sizeof host);
    upload(table.device.data(), &host, sizeof host);
    table.centroids = args.codebook->centroids;
  }
  encode("polar_encode", args,
         [&](const EncodeReport& report) { launch_polar_encode(args, table.device.as<EncodeTable>(), report, stream_); });
}

void CudaBackend::int4_encode(const Int4EncodeArgs& args) {
  encode("int4_encode", args, [&](const EncodeReport& report) { launch_int4_encode(args, report, stream_); });
}

}  // namespace pq::cuda
