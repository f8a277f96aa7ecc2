// Input of the ctest layers.refuses_violations; never compiled. Four violations: a room above, a header without a room, MPI and JSON.
#include <mpi.h>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"
#include "error.h"
#include "model/config.h"
