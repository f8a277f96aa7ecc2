// The file of logits read back through HDF5's own C API.
#include "eval/logits_file.h"

#include <gtest/gtest.h>
#include <hdf5.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>

#include "base/error.h"
#include "base/file.h"

namespace pq {
namespace {

class LogitsFileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "pq-logits-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string path(const char* name) const { return directory_ + "/" + name; }

  std::string directory_;
};

template <typename T>
std::vector<T> read_dataset(hid_t file, const char* name, hid_t type, std::vector<hsize_t>* shape) {
  const hid_t dataset = H5Dopen2(file, name, H5P_DEFAULT);
  EXPECT_GE(dataset, 0) << name;
  const hid_t space = H5Dget_space(dataset);
  shape->resize(static_cast<size_t>(H5Sget_simple_extent_ndims(space)));
  H5Sget_simple_extent_dims(space, shape->data(), nullptr);
  size_t count = 1;
  for (const hsize_t dim : *shape) count *= dim;
  std::vector<T> values(count);
  EXPECT_GE(H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0) << name;
  H5Sclose(space);
  H5Dclose(dataset);
  return values;
}

std::string read_attribute(hid_t file, const char* name) {
  const hid_t attribute = H5Aopen(file, name, H5P_DEFAULT);
  EXPECT_GE(attribute, 0) << name;
  const hid_t type = H5Aget_type(attribute);
  std::vector<char> value(H5Tget_size(type) + 1, '\0');
  EXPECT_GE(H5Aread(attribute, type, value.data()), 0);
  H5Tclose(type);
  H5Aclose(attribute);
  return value.data();
}

const LogitsFileInfo kInfo = {"gptq-2048 (window 3)", "aa", "bb", "store x (pq5, 5.125 bits per weight)"};

TEST_F(LogitsFileTest, RoundTrip) {
  // 3 MiB a row, so that the buffer of 8 MiB is written more than once.
  constexpr int64_t kVocab = 786432;
  const std::vector<int32_t> text = {5, 6, 7, 8, 9, 10, 11};
  const std::vector<Window> windows = {{0, 3, 1}, {3, 3, 2}};
  const auto logit = [](int64_t row, int64_t v) { return static_cast<float>(row * 1000000 + v); };
  {
    LogitsFile file(path("out.h5"), kInfo, text, windows, kVocab);
    std::vector<float> logits(static_cast<size_t>(kVocab));
    for (int64_t row = 0; row < 6; ++row) {
      for (int64_t v = 0; v < kVocab; ++v) logits[static_cast<size_t>(v)] = logit(row, v);
      EvaluatedRow evaluated;
      evaluated.token = static_cast<int32_t>(5 + row);
      evaluated.scored = row != 2;
      evaluated.nll = row != 2 ? 0.5 + static_cast<double>(row) : std::numeric_limits<double>::quiet_NaN();
      evaluated.logits = logits.data();
      file.append(evaluated);
    }
    EXPECT_FALSE(path_exists(path("out.h5")));
    file.finish();
  }
  EXPECT_TRUE(path_exists(path("out.h5")));
  EXPECT_FALSE(path_exists(path("out.h5.tmp")));

  const hid_t file = H5Fopen(path("out.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  ASSERT_GE(file, 0);
  std::vector<hsize_t> shape;
  const std::vector<float> logits = read_dataset<float>(file, "logits", H5T_NATIVE_FLOAT, &shape);
  EXPECT_EQ(shape, (std::vector<hsize_t>{6, static_cast<hsize_t>(kVocab)}));
  for (int64_t row = 0; row < 6; ++row)
    for (int64_t v = 0; v < kVocab; v += 65521) EXPECT_EQ(logits[static_cast<size_t>(row * kVocab + v)], logit(row, v));
  EXPECT_EQ(logits.back(), logit(5, kVocab - 1));
  EXPECT_EQ(read_dataset<int32_t>(file, "tokens", H5T_NATIVE_INT32, &shape), (std::vector<int32_t>{5, 6, 7, 8, 9, 10}));
  EXPECT_EQ(read_dataset<uint8_t>(file, "scored", H5T_NATIVE_UINT8, &shape), (std::vector<uint8_t>{1, 1, 0, 1, 1, 1}));
  const std::vector<double> nll = read_dataset<double>(file, "nll", H5T_NATIVE_DOUBLE, &shape);
  EXPECT_EQ(nll[5], 5.5);
  EXPECT_TRUE(std::isnan(nll[2]));
  EXPECT_EQ(read_dataset<int64_t>(file, "windows", H5T_NATIVE_INT64, &shape), (std::vector<int64_t>{0, 3, 1, 3, 3, 2}));
  EXPECT_EQ(shape, (std::vector<hsize_t>{2, 3}));
  EXPECT_EQ(read_dataset<int32_t>(file, "text_tokens", H5T_NATIVE_INT32, &shape), text);
  EXPECT_EQ(read_attribute(file, "format"), "pq-logits");
  EXPECT_EQ(read_attribute(file, "protocol"), kInfo.protocol);
  EXPECT_EQ(read_attribute(file, "text_sha256"), kInfo.text_sha256);
  EXPECT_EQ(read_attribute(file, "tokens_sha256"), kInfo.tokens_sha256);
  EXPECT_EQ(read_attribute(file, "model"), kInfo.model);
  H5Fclose(file);
}

TEST_F(LogitsFileTest, AnUnfinishedFileLeavesNothingAndTheOldOneStays) {
  write_file_atomically(path("out.h5"), "old");
  {
    LogitsFile file(path("out.h5"), kInfo, {1, 2}, {{0, 2, 1}}, 4);
    const float logits[4] = {};
    EvaluatedRow row;
    row.logits = logits;
    file.append(row);
    EXPECT_TRUE(path_exists(path("out.h5.tmp")));
    EXPECT_THROW(file.finish(), Error);  // a row is missing
  }
  EXPECT_FALSE(path_exists(path("out.h5.tmp")));
  EXPECT_EQ(read_text_file(path("out.h5"), 10), "old");
}

TEST_F(LogitsFileTest, RefusesMoreRowsThanTheWindowsHave) {
  LogitsFile file(path("out.h5"), kInfo, {1, 2}, {{0, 2, 1}}, 4);
  const float logits[4] = {};
  EvaluatedRow row;
  row.logits = logits;
  file.append(row);
  file.append(row);
  EXPECT_THROW(file.append(row), Error);
}

TEST_F(LogitsFileTest, NamesTheFileItCannotCreate) {
  try {
    const LogitsFile file(path("absent/out.h5"), kInfo, {1, 2}, {{0, 2, 1}}, 4);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::io);
    EXPECT_NE(std::string(error.what()).find(path("absent/out.h5.tmp")), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace pq
