/* Forwards the entry points that TensorRT's Python bindings link against to TensorRT for RTX.

   The bindings ask for libnvinfer.so.11, libnvinfer_plugin.so.11 and libnvonnxparser.so.11. This file is
   compiled once under each of those names and lies beside the two libraries it forwards to. Every call that
   carries a version number passes on the RTX library's own, because the library refuses any other. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *open_beside(const char *name)
{
    Dl_info self;
    char path[PATH_MAX];
    const char *end;
    if (!dladdr((void *)open_beside, &self) || !(end = strrchr(self.dli_fname, '/')))
        return dlopen(name, RTLD_NOW | RTLD_LOCAL);
    snprintf(path, sizeof path, "%.*s/%s", (int)(end - self.dli_fname), self.dli_fname, name);
    return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

static void *find(const char *library, const char *symbol)
{
    void *handle = open_beside(library);
    void *found = handle ? dlsym(handle, symbol) : NULL;
    if (!found) {
        fprintf(stderr, "%s in %s: %s\n", symbol, library, dlerror());
        abort();
    }
    return found;
}

#define CORE(symbol) find("libtensorrt_rtx.so.1", symbol)
#define PARSER(symbol) find("libtensorrt_onnxparser_rtx.so.1", symbol)

int32_t getInferLibVersion(void) { return ((int32_t (*)(void))CORE("getInferLibVersion"))(); }
int32_t getNvOnnxParserVersion(void) { return ((int32_t (*)(void))PARSER("getNvOnnxParserVersion"))(); }
void *getLogger(void) { return ((void *(*)(void))CORE("getLogger"))(); }
void *getPluginRegistry(void) { return ((void *(*)(void))CORE("getPluginRegistry"))(); }

void *getBuilderPluginRegistry(int32_t capability)
{
    return ((void *(*)(int32_t))CORE("getBuilderPluginRegistry"))(capability);
}

void *createInferBuilder_INTERNAL(void *logger, int32_t version)
{
    (void)version;
    return ((void *(*)(void *, int32_t))CORE("createInferBuilder_INTERNAL"))(logger, getInferLibVersion());
}

void *createInferRuntime_INTERNAL(void *logger, int32_t version)
{
    (void)version;
    return ((void *(*)(void *, int32_t))CORE("createInferRuntime_INTERNAL"))(logger, getInferLibVersion());
}

void *createInferRefitter_INTERNAL(void *engine, void *logger, int32_t version)
{
    (void)version;
    return ((void *(*)(void *, void *, int32_t))CORE("createInferRefitter_INTERNAL"))(
        engine, logger, getInferLibVersion());
}

void *createNvOnnxParser_INTERNAL(void *network, void *logger, int32_t version)
{
    (void)version;
    return ((void *(*)(void *, void *, int32_t))PARSER("createNvOnnxParser_INTERNAL"))(
        network, logger, getNvOnnxParserVersion());
}

void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int32_t version)
{
    (void)version;
    return ((void *(*)(void *, void *, int32_t))PARSER("createNvOnnxParserRefitter_INTERNAL"))(
        refitter, logger, getNvOnnxParserVersion());
}

/* TensorRT for RTX has no library of ready-made plugins: there is nothing to register. */
_Bool initLibNvInferPlugins(void *logger, const char *library_namespace)
{
    (void)logger;
    (void)library_namespace;
    return 1;
}
