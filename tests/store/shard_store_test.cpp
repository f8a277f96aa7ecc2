// What another program sees of a shard: the HDF5 library itself reads the data sets that the store writes and loads by offset.
#include <hdf5.h>

#include <cstring>

#include "store/store_fixture.h"
#include "store/store_reader.h"

namespace pq {
namespace {

using testing::TempDir;

struct DataSet {
  std::vector<hsize_t> dims;
  H5T_class_t type_class = H5T_NO_CLASS;
  size_t item_bytes = 0;
  std::vector<uint8_t> bytes;  // as stored
};

DataSet read_dataset(hid_t file, const std::string& path) {
  DataSet result;
  const hid_t dataset = H5Dopen2(file, path.c_str(), H5P_DEFAULT);
  EXPECT_GE(dataset, 0) << path;
  if (dataset < 0) return result;
  const hid_t space = H5Dget_space(dataset), type = H5Dget_type(dataset);
  result.dims.resize(static_cast<size_t>(H5Sget_simple_extent_ndims(space)));
  H5Sget_simple_extent_dims(space, result.dims.data(), nullptr);
  result.type_class = H5Tget_class(type);
  result.item_bytes = H5Tget_size(type);
  result.bytes.resize(static_cast<size_t>(H5Sget_simple_extent_npoints(space)) * result.item_bytes);
  EXPECT_GE(H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, result.bytes.data()), 0) << path;
  H5Tclose(type);
  H5Sclose(space);
  H5Dclose(dataset);
  return result;
}

class Shard : public ::testing::Test {
 protected:
  Shard() : model_(testing::tiny_model()) {
    testing::write_checkpoint(dir_ / "hf", model_);
    testing::make_store({.source = dir_ / "hf", .destination = dir_ / "store", .specs = model_.specs});
    file_ = H5Fopen((dir_ / "store/shard-00001.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  }
  ~Shard() override { H5Fclose(file_); }
  const TensorSpec& spec(const std::string& name) const {
    for (const TensorSpec& spec : model_.specs)
      if (spec.name == name) return spec;
    throw Error(ErrorKind::internal, name);
  }
  TempDir dir_;
  testing::TinyModel model_;
  hid_t file_ = -1;
};

TEST_F(Shard, Hdf5ReadsTheBytesThatAreLoaded) {
  StoreReader store(dir_ / "store");
  for (const char* name : {"layers.0.mlp.down_proj.weight", "layers.0.mlp.gate_proj.weight"}) {
    const TensorSpec& tensor = spec(name);
    const testing::Loaded loaded = testing::load_pieces(store, tensor, 0, tensor.pieces);
    const DataSet codes = read_dataset(file_, "/tensors/" + tensor.name + "/codes");
    const DataSet norms = read_dataset(file_, "/tensors/" + tensor.name + "/norms");
    EXPECT_EQ(codes.bytes, loaded.data) << name;
    ASSERT_EQ(norms.bytes.size(), loaded.scales.size() * 2);
    EXPECT_EQ(std::memcmp(norms.bytes.data(), loaded.scales.data(), norms.bytes.size()), 0) << name;
    EXPECT_EQ(norms.type_class, H5T_FLOAT);
    EXPECT_EQ(norms.item_bytes, 2u);
    const bool by_cols = tensor.split == Split::cols;
    EXPECT_EQ(codes.dims, by_cols ? (std::vector<hsize_t>{4, 128, 1, 80}) : (std::vector<hsize_t>{512, 1, 80}));
    EXPECT_EQ(norms.dims, by_cols ? (std::vector<hsize_t>{4, 128, 1}) : (std::vector<hsize_t>{512, 1}));
  }
}

// The half type has the bit fields of IEEE binary16: HDF5's own conversion to float agrees with ours.
TEST_F(Shard, NormsConvertToFloat) {
  const hid_t dataset = H5Dopen2(file_, "/tensors/layers.0.mlp.gate_proj.weight/norms", H5P_DEFAULT);
  std::vector<float> values(512);
  ASSERT_GE(H5Dread(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0);
  H5Dclose(dataset);
  StoreReader store(dir_ / "store");
  const testing::Loaded loaded = testing::load_pieces(store, spec("layers.0.mlp.gate_proj.weight"), 0, 4);
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(values[i], f16_to_f32(loaded.scales[i]));
}

TEST_F(Shard, KeptTensorsAndCodebook) {
  const DataSet norm = read_dataset(file_, "/tensors/layers.0.input_layernorm.weight/data");
  EXPECT_EQ(norm.dims, (std::vector<hsize_t>{128}));
  EXPECT_EQ(norm.item_bytes, 2u);
  const DataSet a_log = read_dataset(file_, "/tensors/layers.0.linear_attn.A_log/data");
  EXPECT_EQ(a_log.dims, (std::vector<hsize_t>{4}));
  EXPECT_EQ(a_log.type_class, H5T_FLOAT);
  EXPECT_EQ(a_log.item_bytes, 4u);
  StoreReader store(dir_ / "store");
  const auto& [key, codebook] = *store.manifest().codebooks.begin();
  const DataSet table = read_dataset(file_, "/codebooks/" + key);
  ASSERT_EQ(table.bytes.size(), codebook.centroids.size() * 4);
  EXPECT_EQ(std::memcmp(table.bytes.data(), codebook.centroids.data(), table.bytes.size()), 0);
}

}  // namespace
}  // namespace pq
