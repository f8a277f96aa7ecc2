// HDF5 layout of a shard. The only file of the store that includes hdf5.h.
#include "store/shard_store.h"

#include <fmt/format.h>
#include <hdf5.h>
#include <sys/mman.h>

#include <mutex>
#include <new>

#include "base/error.h"
#include "store/quantizer.h"
#include "store/shard_frame.h"

namespace pq {
namespace {

constexpr hsize_t kAlignment = 4096;
// The disk starts on this much at a time while the next weights are coded, so that little is left for the sync at the end.
constexpr int64_t kSyncBytes = 16 << 20;

// The library may be built without thread safety; layouts are short, so one at a time will do.
std::mutex& hdf5_mutex() {
  static std::mutex mutex;
  return mutex;
}

// Throws std::bad_alloc where HDF5 1.10.8 would write through the null of an allocation that failed (in H5AC_create).
void require_memory_for_hdf5() {
  constexpr size_t kBytes = 16 << 20;
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  munmap(memory, kBytes);
}

int64_t checked(int64_t value, const std::string& what) {
  if (value < 0) throw Error(ErrorKind::io, "HDF5 cannot " + what + "; is the disk full?");
  return value;
}

class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t), const std::string& what) : id_(checked(id, what)), close_(close) {}
  ~Handle() { close_(id_); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  operator hid_t() const { return id_; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

void write_attribute(hid_t object, const char* name, const std::string& text) {
  const Handle type(H5Tcopy(H5T_C_S1), H5Tclose, "copy a type");
  checked(H5Tset_size(type, std::max<size_t>(text.size(), 1)), "size a string");
  checked(H5Tset_strpad(type, H5T_STR_NULLPAD), "pad a string");
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose, "make a space");
  const Handle attribute(H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose, "make an attribute");
  checked(H5Awrite(attribute, type, text.empty() ? "\0" : text.data()), "write an attribute");
}

void write_attribute(hid_t object, const char* name, const std::vector<int64_t>& values) {
  const hsize_t count = values.size();
  const Handle space(count == 1 ? H5Screate(H5S_SCALAR) : H5Screate_simple(1, &count, nullptr), H5Sclose, "make a space");
  const Handle attribute(H5Acreate2(object, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose, "make an attribute");
  checked(H5Awrite(attribute, H5T_NATIVE_INT64, values.data()), "write an attribute");
}

// A type of its own for the caller to close. Halves are the IEEE type that h5py calls float16; bf16 has no HDF5 type and is kept as
// uint16 with an attribute.
hid_t make_type(const std::string& element) {
  if (element == "u8") return H5Tcopy(H5T_STD_U8LE);
  if (element == "f32") return H5Tcopy(H5T_IEEE_F32LE);
  if (element == "bf16") return H5Tcopy(H5T_STD_U16LE);
  const hid_t type = H5Tcopy(H5T_IEEE_F32LE);
  checked(H5Tset_fields(type, 15, 10, 5, 0, 10), "make a half type");
  checked(H5Tset_size(type, 2), "make a half type");
  checked(H5Tset_ebias(type, 15), "make a half type");
  return type;
}

struct PlaneShape {
  std::string name;
  std::string element;
  std::vector<int64_t> inner;  // axes behind [pieces][rows]
};

PlaneShape plane_shape(const Encoding& encoding, int64_t cols, int plane) {
  const int64_t blocks = cols / kBlock;
  switch (encoding.format) {
    case WeightFormat::polar:
      if (plane == 0) return {"codes", "u8", {blocks, 16 * encoding.bits}};
      return {"norms", "f16", {blocks}};
    case WeightFormat::int4:
      if (plane == 0) return {"codes", "u8", {blocks, kBlock / 2}};
      return {plane == 1 ? "scales" : "zeros", "bf16", {blocks}};
    case WeightFormat::bf16:
      return {"data", "bf16", {cols}};
    case WeightFormat::f32: {
      const char* element = encoding.dtype == DType::f32 ? "f32" : encoding.dtype == DType::bf16 ? "bf16" : "f16";
      if (cols == 1) return {"data", element, {}};  // a vector
      return {"data", element, {cols}};
    }
  }
  throw Error(ErrorKind::internal, "unknown weight format");
}

// Makes the data set and returns its offset in the file.
int64_t make_dataset(hid_t group, const PlaneShape& shape, std::vector<int64_t> outer) {
  std::vector<hsize_t> dims(outer.begin(), outer.end());
  dims.insert(dims.end(), shape.inner.begin(), shape.inner.end());
  const Handle space(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr), H5Sclose, "make a space");
  const Handle type(make_type(shape.element), H5Tclose, "make a type");
  const Handle create(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "make a property list");
  checked(H5Pset_layout(create, H5D_CONTIGUOUS), "set a layout");
  checked(H5Pset_alloc_time(create, H5D_ALLOC_TIME_EARLY), "set the time of allocation");
  checked(H5Pset_fill_time(create, H5D_FILL_TIME_NEVER), "set the time of filling");
  checked(H5Pset_obj_track_times(create, false), "leave out time stamps");
  const Handle dataset(H5Dcreate2(group, shape.name.c_str(), type, space, H5P_DEFAULT, create, H5P_DEFAULT), H5Dclose,
                       "make the data set " + shape.name);
  if (shape.element == "bf16") write_attribute(dataset, "dtype", "bfloat16");
  const haddr_t offset = H5Dget_offset(dataset);
  if (offset == HADDR_UNDEF) throw Error(ErrorKind::io, "HDF5 gave no room to the data set " + shape.name);
  return static_cast<int64_t>(offset);
}

Handle make_group(hid_t parent, const std::string& name) {
  const Handle create(H5Pcreate(H5P_GROUP_CREATE), H5Pclose, "make a property list");
  checked(H5Pset_obj_track_times(create, false), "leave out time stamps");
  return Handle(H5Gcreate2(parent, name.c_str(), H5P_DEFAULT, create, H5P_DEFAULT), H5Gclose, "make the group " + name);
}

void write_codebook(hid_t group, const std::string& key, const Codebook& codebook) {
  const int64_t entries = static_cast<int64_t>(codebook.centroids.size());
  make_dataset(group, {key, "f32", {entries}}, {});
  const Handle dataset(H5Dopen2(group, key.c_str(), H5P_DEFAULT), H5Dclose, "open " + key);
  checked(H5Dwrite(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, codebook.centroids.data()), "write " + key);
}

void make_tensor(hid_t parent, TensorRecord* record) {
  const TensorSpec& spec = record->spec;
  const Handle group = make_group(parent, spec.name);
  write_attribute(group, "format", encoding_name(record->encoding));
  write_attribute(group, "shape", std::vector<int64_t>{spec.rows, spec.cols});
  write_attribute(group, "split", spec.split == Split::rows ? "rows" : spec.split == Split::cols ? "cols" : "replicated");
  write_attribute(group, "pieces", std::vector<int64_t>{spec.pieces});
  if (record->encoding.format == WeightFormat::polar) {
    write_attribute(group, "codec", "lloyd-max");
    write_attribute(group, "bits", std::vector<int64_t>{record->encoding.bits});
    write_attribute(group, "codebook", record->codebook);
  }
  std::vector<int64_t> outer = {spec.rows};
  if (spec.split == Split::cols) outer = {spec.pieces, spec.rows};
  for (int plane = 0; plane < kPlanes; ++plane)
    if (piece_bytes(spec, record->encoding, plane) > 0)
      record->planes[plane].offset = make_dataset(group, plane_shape(record->encoding, piece_cols(spec), plane), outer);
}

// Returns the offset of the label.
int64_t lay_out(const std::string& path, ShardNote* note) {
  const std::lock_guard<std::mutex> lock(hdf5_mutex());
  checked(H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr), "be quiet");
  const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "make a property list");
  checked(H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_V18), "fix the version of the format");
  checked(H5Pset_alignment(access, kAlignment, kAlignment), "set the alignment");
  const Handle create(H5Pcreate(H5P_FILE_CREATE), H5Pclose, "make a property list");
  checked(H5Pset_obj_track_times(create, false), "leave out time stamps");
  require_memory_for_hdf5();
  File::create(path);  // says why it cannot, which HDF5 does not
  const Handle file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, create, access), H5Fclose, "create " + path);
  const Handle root(H5Gopen2(file, "/", H5P_DEFAULT), H5Gclose, "open the root group");
  write_attribute(root, "format", kStoreFormat);
  write_attribute(root, "version", std::vector<int64_t>{kStoreMajor, kStoreMinor});
  write_attribute(root, "block", std::vector<int64_t>{kBlock});
  write_attribute(root, "rotation", "sylvester-hadamard-128");
  write_attribute(root, "norms", "w = norm / sqrt(128) * H c[code]");
  write_attribute(root, "model_norms", "stored w, applied 1 + w; linear_attn.norm is applied as stored");
  const int64_t label = make_dataset(root, {"label", "u8", {kLabelBytes}}, {});
  const Handle books = make_group(file, "codebooks");
  for (const auto& [key, codebook] : note->codebooks) write_codebook(books, key, codebook);
  const Handle tensors = make_group(file, "tensors");
  for (TensorRecord& record : note->tensors)
    if (record.same_as.empty()) make_tensor(tensors, &record);
  checked(H5Fflush(file, H5F_SCOPE_GLOBAL), "flush " + path);
  return label;
}

}  // namespace

ShardWriter::ShardWriter(const std::string& path, int64_t shard, ShardNote* note) : path_(path), shard_(shard), note_(note) {
  label_offset_ = lay_out(path, note);
  require(label_offset_ + kLabelBytes <= kLabelSearchBytes, "shard: the label lies too far from the start");
  file_ = File::open_update(path);
}

void ShardWriter::begin_tensor(size_t index) {
  current_ = index;
  const TensorRecord& record = note_->tensors[index];
  for (int plane = 0; plane < kPlanes; ++plane) {
    streams_[plane].clear();
    if (piece_bytes(record.spec, record.encoding, plane) > 0) streams_[plane].resize(static_cast<size_t>(record.spec.pieces));
    written_[plane].assign(streams_[plane].size(), 0);
  }
}

void ShardWriter::write(int plane, int64_t piece, int64_t offset, const uint8_t* data, int64_t bytes) {
  const TensorRecord& record = note_->tensors[current_];
  const int64_t whole = piece_bytes(record.spec, record.encoding, plane);
  require(offset == written_[plane].at(static_cast<size_t>(piece)) && offset + bytes <= whole,
          "shard: pieces must be written in order");
  file_.write_at(data, bytes, record.planes[plane].offset + piece * whole + offset);
  unsynced_bytes_ += bytes;
  if (unsynced_bytes_ >= kSyncBytes) {
    file_.start_sync();
    unsynced_bytes_ = 0;
  }
  streams_[plane][static_cast<size_t>(piece)].update(data, bytes);
  written_[plane][static_cast<size_t>(piece)] += bytes;
}

void ShardWriter::end_tensor() {
  TensorRecord& record = note_->tensors[current_];
  for (int plane = 0; plane < kPlanes; ++plane) {
    record.planes[plane].checksums.clear();
    for (size_t piece = 0; piece < streams_[plane].size(); ++piece) {
      require(written_[plane][piece] == piece_bytes(record.spec, record.encoding, plane), "shard: a piece is incomplete");
      record.planes[plane].checksums.push_back(streams_[plane][piece].digest());
    }
  }
}

void ShardWriter::publish(const std::string& directory) {
  const std::string label = label_text({note_->fingerprint, shard_, shard_content(note_->tensors, shard_)});
  file_.write_at(label.data(), kLabelBytes, label_offset_);
  const int64_t bytes = file_.size();
  note_->shard = {shard_file_name(shard_), bytes, frame_hash(file_, bytes, note_->tensors, shard_)};
  file_.sync_and_close();
  publish_file(path_, directory + "/" + note_->shard.file);
}

}  // namespace pq
