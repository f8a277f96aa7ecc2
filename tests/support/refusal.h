// What every program promises when it refuses: its code, nothing on standard output, one line on standard error, promptly.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/process.h"

namespace pq::test {

// Checks the promise of `program` and returns the line.
inline std::string refusal_line(const std::string& program, const ProcessResult& result, const std::vector<int>& codes) {
  EXPECT_THAT(codes, testing::Contains(result.code)) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_LT(result.seconds, 20 * kTimeFactor);
  const auto lines = lines_of(result.err);
  EXPECT_EQ(lines.size(), 1u) << result.err;
  if (lines.empty()) return "";
  EXPECT_THAT(lines[0], testing::MatchesRegex(program + "(\\[[0-9]\\])?: .*"));
  return lines[0];
}

}  // namespace pq::test
