// Input of the ctest layers.refuses_violations; never compiled. No violation.
#include "base/error.h"
