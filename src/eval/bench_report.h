// A BenchReport as Markdown, CSV or JSON: numbers are computed once, here, from the same rows.
#pragma once

#include <string>

#include "eval/bench.h"

namespace pq {

enum class ReportFormat : int { markdown, csv, json };

// `title` names the model, ranks, backend. Columns: median time and spread, tokens/s, GB/s of all ranks and of one and its fraction
// of the read roof, int8 multiply-adds/s and their fraction of the dot roof, encoded weights/s and their error; where one means
// nothing it is 0 in CSV and JSON and empty in Markdown, which leaves out columns that are empty throughout.
std::string format_report(const BenchReport& report, const std::string& title, ReportFormat format);

}  // namespace pq
