// Telling TensorRT's log why something is refused.

#pragma once

#include <NvInfer.h>

namespace divprune {

// TensorRT hands its logger over when it loads the library; before that, messages go to standard error.
void set_logger_finder(nvinfer1::ILoggerFinder* finder);

// Logs "MaxMinDiversity: …" as an error; printf-style.
__attribute__((format(printf, 1, 2))) void log_error(const char* format, ...);

}  // namespace divprune
