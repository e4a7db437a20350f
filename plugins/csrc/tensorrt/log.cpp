#include "log.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>

namespace divprune {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) { logger_finder = finder; }

void log_error(const char* format, ...) {
    char text[512];
    int used = std::snprintf(text, sizeof text, "MaxMinDiversity: ");
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text + used, sizeof text - static_cast<size_t>(used), format, arguments);
    va_end(arguments);
    nvinfer1::ILoggerFinder* finder = logger_finder;
    nvinfer1::ILogger* logger = finder == nullptr ? nullptr : finder->findLogger();
    if (logger == nullptr) {
        std::fprintf(stderr, "%s\n", text);
    } else {
        logger->log(nvinfer1::ILogger::Severity::kERROR, text);
    }
}

}  // namespace divprune
