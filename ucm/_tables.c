/* SPDX-License-Identifier: MIT
 *
 * Build step: print the option tables of the given plugins as JSON.
 */
#include <dlfcn.h>
#include <stdio.h>

#include "ucm/store_v1.h"

static void text(const char *s) {
    if (!s) {
        fputs("null", stdout);
        return;
    }
    putchar('"');
    for (; *s; s++) {
        if (*s == '"' || *s == '\\') putchar('\\');
        putchar(*s);
    }
    putchar('"');
}

static int table(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const ucm_plugin *(*entry)(void);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    *(void **)&entry = dlsym(library, UCM_PLUGIN_SYMBOL);
    if (!entry) {
        fprintf(stderr, "%s has no " UCM_PLUGIN_SYMBOL "\n", path);
        return 1;
    }
    const ucm_plugin *plugin = entry();
    text(plugin->name);
    fputs(": [", stdout);
    for (size_t i = 0; i < plugin->n_options; i++) {
        const ucm_option *option = UCM_AT(ucm_option, plugin->options, plugin->option_stride, i);
        fputs(i ? ", {\"name\": " : "{\"name\": ", stdout);
        text(option->name);
        printf(", \"type\": %d, \"initial\": ", (int)option->type);
        text(option->initial);
        fputs(", \"allowed\": ", stdout);
        text(option->allowed);
        fputs(", \"unit\": ", stdout);
        text(option->unit);
        fputs(", \"help\": ", stdout);
        text(option->help);
        putchar('}');
    }
    putchar(']');
    return 0;
}

int main(int argc, char **argv) {
    putchar('{');
    for (int i = 1; i < argc; i++) {
        if (i > 1) fputs(", ", stdout);
        if (table(argv[i])) return 1;
    }
    puts("}");
    return 0;
}
