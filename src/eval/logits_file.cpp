// Writing through the C API of serial HDF5.
#include "eval/logits_file.h"

#include <fmt/format.h>
#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/file.h"

namespace pq {
namespace {

constexpr int64_t kBufferBytes = int64_t{8} << 20;

// A handle and the function that closes it.
class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t), const std::string& what) : id_(id), close_(close) {
    if (id_ < 0) throw Error(ErrorKind::io, what);
  }
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  hid_t id() const { return id_; }
  // False when the library could not close, which for a file means that its last bytes may be missing.
  bool close() {
    const hid_t id = std::exchange(id_, -1);
    return close_(id) >= 0;
  }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

}  // namespace

struct LogitsFile::Impl {
  std::string path;
  std::string temporary;
  int64_t vocab;
  int64_t rows = 0;
  int64_t buffer_rows;
  int64_t written = 0;
  bool finished = false;
  std::unique_ptr<Handle> file;
  std::vector<float> logits;
  std::vector<int32_t> tokens;
  std::vector<uint8_t> scored;
  std::vector<double> nll;

  ~Impl() {
    if (finished || file == nullptr) return;
    file.reset();
    ::unlink(temporary.c_str());
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorKind::io, fmt::format("cannot {} {}; is the disk full or the directory not writable?", what, temporary));
  }

  std::string failure(const char* what) const { return fmt::format("cannot {} in {}", what, temporary); }

  void write_attribute(const char* name, const std::string& value) {
    const Handle type(H5Tcopy(H5T_C_S1), H5Tclose, failure("make a string type"));
    H5Tset_size(type.id(), value.size() + 1);
    H5Tset_cset(type.id(), H5T_CSET_UTF8);
    const Handle space(H5Screate(H5S_SCALAR), H5Sclose, failure("make a data space"));
    const Handle attribute(H5Acreate2(file->id(), name, type.id(), space.id(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose,
                           failure("create an attribute"));
    if (H5Awrite(attribute.id(), type.id(), value.c_str()) < 0) fail("write attributes of");
  }

  void write_version(int32_t version) {
    const Handle space(H5Screate(H5S_SCALAR), H5Sclose, failure("make a data space"));
    const Handle attribute(H5Acreate2(file->id(), "version", H5T_STD_I32LE, space.id(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose,
                           failure("create an attribute"));
    if (H5Awrite(attribute.id(), H5T_NATIVE_INT32, &version) < 0) fail("write attributes of");
  }

  void create_dataset(const char* name, hid_t type, const std::vector<hsize_t>& shape) {
    const Handle space(H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr), H5Sclose,
                       failure("make a data space"));
    const Handle dataset(H5Dcreate2(file->id(), name, type, space.id(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Dclose,
                         failure("create a dataset"));
  }

  // Rows [first, first + count) of a dataset of one or two dimensions.
  void write_rows(const char* name, hid_t type, int64_t first, int64_t count, const void* data) {
    if (count == 0) return;
    const Handle dataset(H5Dopen2(file->id(), name, H5P_DEFAULT), H5Dclose, failure("open a dataset"));
    const Handle space(H5Dget_space(dataset.id()), H5Sclose, failure("read a data space"));
    hsize_t dims[2] = {0, 0};
    const int rank = H5Sget_simple_extent_dims(space.id(), dims, nullptr);
    const hsize_t start[2] = {static_cast<hsize_t>(first), 0};
    const hsize_t extent[2] = {static_cast<hsize_t>(count), dims[1]};
    if (rank < 1 || H5Sselect_hyperslab(space.id(), H5S_SELECT_SET, start, nullptr, extent, nullptr) < 0) fail("select rows of");
    const Handle memory(H5Screate_simple(rank, extent, nullptr), H5Sclose, failure("make a data space"));
    if (H5Dwrite(dataset.id(), type, memory.id(), space.id(), H5P_DEFAULT, data) < 0) fail("write to");
  }

  void flush() {
    const int64_t count = static_cast<int64_t>(tokens.size());
    write_rows("logits", H5T_NATIVE_FLOAT, written, count, logits.data());
    write_rows("tokens", H5T_NATIVE_INT32, written, count, tokens.data());
    write_rows("scored", H5T_NATIVE_UINT8, written, count, scored.data());
    write_rows("nll", H5T_NATIVE_DOUBLE, written, count, nll.data());
    written += count;
    logits.clear();
    tokens.clear();
    scored.clear();
    nll.clear();
  }
};

LogitsFile::LogitsFile(const std::string& path, const LogitsFileInfo& info, const std::vector<int32_t>& text_tokens,
                       const std::vector<Window>& windows, int64_t vocab)
    : impl_(std::make_unique<Impl>()) {
  Impl& m = *impl_;
  m.path = path;
  m.temporary = path + ".tmp";
  m.vocab = vocab;
  m.buffer_rows = std::max<int64_t>(1, kBufferBytes / (vocab * static_cast<int64_t>(sizeof(float))));
  for (const Window& window : windows) m.rows += window.length;
  // The library prints a stack of its own otherwise; errors are reported here.
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  m.file = std::make_unique<Handle>(H5Fcreate(m.temporary.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose,
                                    fmt::format("cannot create {}; does the directory exist, and may it be written?", m.temporary));
  m.write_attribute("format", "pq-logits");
  m.write_version(1);
  m.write_attribute("protocol", info.protocol);
  m.write_attribute("text_sha256", info.text_sha256);
  m.write_attribute("tokens_sha256", info.tokens_sha256);
  m.write_attribute("model", info.model);
  const hsize_t rows = static_cast<hsize_t>(m.rows);
  m.create_dataset("logits", H5T_IEEE_F32LE, {rows, static_cast<hsize_t>(vocab)});
  m.create_dataset("tokens", H5T_STD_I32LE, {rows});
  m.create_dataset("scored", H5T_STD_U8LE, {rows});
  m.create_dataset("nll", H5T_IEEE_F64LE, {rows});
  m.create_dataset("windows", H5T_STD_I64LE, {windows.size(), 3});
  m.create_dataset("text_tokens", H5T_STD_I32LE, {text_tokens.size()});
  std::vector<int64_t> table;
  for (const Window& window : windows) table.insert(table.end(), {window.first_token, window.length, window.first_scored});
  m.write_rows("windows", H5T_NATIVE_INT64, 0, static_cast<int64_t>(windows.size()), table.data());
  m.write_rows("text_tokens", H5T_NATIVE_INT32, 0, static_cast<int64_t>(text_tokens.size()), text_tokens.data());
}

LogitsFile::~LogitsFile() = default;

void LogitsFile::append(const EvaluatedRow& row) {
  Impl& m = *impl_;
  require(m.written + static_cast<int64_t>(m.tokens.size()) < m.rows, "more rows of logits than the windows have positions");
  m.logits.insert(m.logits.end(), row.logits, row.logits + m.vocab);
  m.tokens.push_back(row.token);
  m.scored.push_back(row.scored ? 1 : 0);
  m.nll.push_back(row.nll);
  if (static_cast<int64_t>(m.tokens.size()) == m.buffer_rows) m.flush();
}

void LogitsFile::finish() {
  Impl& m = *impl_;
  m.flush();
  require(m.written == m.rows, "rows of logits are missing at the end of the run");
  if (!m.file->close()) m.fail("close");
  publish_file(m.temporary, m.path);
  m.finished = true;
}

}  // namespace pq
