// generation_config.json as published, absent, partial and wrong.
#include "engine/generation_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/error.h"
#include "base/file.h"

namespace pq {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class GenerationConfigTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    directory_ = testing::TempDir() + "pq_generation_config_" + info->name() + "_" + std::to_string(getpid());
    make_directories(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  GenerationConfig load(const std::string& text) {
    write_file_atomically(directory_ + "/generation_config.json", text);
    return load_generation_config(directory_);
  }
  std::string directory_;
};

TEST_F(GenerationConfigTest, AsPublished) {
  const GenerationConfig config = load(
      R"({"bos_token_id": 248044, "do_sample": true, "eos_token_id": [248046, 248044], "pad_token_id": 248044,
          "temperature": 0.6, "top_k": 20, "top_p": 0.95, "transformers_version": "4.57.0.dev0"})");
  EXPECT_TRUE(config.present);
  EXPECT_EQ(config.sampling.temperature, 0.6);
  EXPECT_EQ(config.sampling.top_k, 20);
  EXPECT_EQ(config.sampling.top_p, 0.95);
  EXPECT_EQ(config.sampling.repeat_penalty, 1);
  EXPECT_THAT(config.eos_ids, ElementsAre(248046, 248044));
  EXPECT_THAT(stop_ids({248044, 7}, config), ElementsAre(7, 248044, 248046));
}

TEST_F(GenerationConfigTest, AbsentMeansGreedy) {
  const GenerationConfig config = load_generation_config(directory_);
  EXPECT_FALSE(config.present);
  EXPECT_EQ(config.sampling.temperature, 0);
  EXPECT_THAT(stop_ids({5, 5}, config), ElementsAre(5));
}

TEST_F(GenerationConfigTest, NumbersAtTheLimits) {
  std::string ids = "[0";
  for (int i = 1; i < 1024; ++i) ids += ",0";
  EXPECT_EQ(load(R"({"eos_token_id": )" + ids + "]}").eos_ids.size(), 1024u);
  const std::string wrong[] = {
      R"("eos_token_id": )" + ids + ",0]",         R"("eos_token_id": 2147483648)",     R"("eos_token_id": -1)",
      R"("do_sample": true, "top_k": 2147483648)", R"("do_sample": true, "top_k": -1)", R"("do_sample": true, "temperature": -0.5)",
      R"("do_sample": true, "top_p": 1e308)"};
  for (const std::string& member : wrong) EXPECT_THROW(load("{" + member + "}"), Error) << member;
}

TEST_F(GenerationConfigTest, PartialFiles) {
  EXPECT_EQ(load(R"({"eos_token_id": 9})").sampling.temperature, 0);
  EXPECT_THAT(load(R"({"eos_token_id": 9})").eos_ids, ElementsAre(9));
  EXPECT_EQ(load(R"({"do_sample": true})").sampling.temperature, 1);
  EXPECT_EQ(load(R"({"do_sample": false, "temperature": 0.6})").sampling.temperature, 0);
  EXPECT_EQ(load(R"({"do_sample": true, "top_k": null, "temperature": null})").sampling.temperature, 1);
}

TEST_F(GenerationConfigTest, WrongFilesNameThePath) {
  for (const char* text : {"", "[]", "{", R"({"do_sample": 1})", R"({"do_sample": true, "temperature": "hot"})",
                           R"({"do_sample": true, "temperature": -1})", R"({"do_sample": true, "top_p": 0})",
                           R"({"do_sample": true, "top_k": -1})", R"({"eos_token_id": "x"})", R"({"eos_token_id": [1, -2]})",
                           R"({"eos_token_id": 3000000000})", R"({"repetition_penalty": 0})"}) {
    try {
      load(text);
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::input) << text;
      EXPECT_THAT(error.what(), HasSubstr("generation_config.json")) << text;
    }
  }
}

}  // namespace
}  // namespace pq
