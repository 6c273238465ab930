/* SPDX-License-Identifier: MIT
 *
 * What is to go wrong, as the environment says (README.md lists the words), and the log.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "standin.h"

enum what { ERROR, SHORT, NEVER };

/* The k-th request of its kind; with `on` also those after it; or some of a hundred. */
struct rule {
    bool for_read, on, percent;
    enum what what;
    long which, value;
};

struct plan plan;
struct counters counters;
int generation;
static struct rule rules[32];
static int rule_count;
static long read_count, write_count;
static uint64_t seed;
static char *text;

uint64_t random_below(uint64_t n) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % n;
}

static long error_of(const char *word) {
    static const struct {
        const char *word;
        int error;
    } known[] = {{"EIO", EIO},       {"ENOSPC", ENOSPC}, {"EREMOTEIO", EREMOTEIO},
                 {"EROFS", EROFS},   {"EPERM", EPERM},   {"EBADF", EBADF},
                 {"EACCES", EACCES}, {"EINVAL", EINVAL}, {"ENODATA", ENODATA},
                 {"EINTR", EINTR},   {"EAGAIN", EAGAIN}, {"ENOMEM", ENOMEM}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(word, known[i].word) == 0) return known[i].error;
    die("HF3FS_STANDIN: no error is known as %s", word);
}

static void add_rule(bool for_read, enum what what, const char *value) {
    struct rule rule = {.for_read = for_read, .what = what};
    char *end;
    rule.which = strtol(value, &end, 10);
    rule.on = *end == '+';
    rule.percent = *end == '%';
    end += rule.on || rule.percent;
    if (*end == ':') end++;
    if (what == ERROR) rule.value = error_of(end);
    if (what == SHORT) rule.value = atol(end);
    if (rule_count == (int)(sizeof rules / sizeof *rules)) die("HF3FS_STANDIN: too many rules");
    rules[rule_count++] = rule;
}

static void parse(char *word) {
    char *value = strchr(word, '=');
    if (value == NULL) die("HF3FS_STANDIN: %s is no NAME=VALUE", word);
    *value++ = 0;
    const bool for_read = strncmp(word, "read_", 5) == 0;
    const char *what = strchr(word, '_') ? strchr(word, '_') + 1 : "";
    if (strcmp(word, "seed") == 0) {
        seed = strtoull(value, NULL, 10) * 2654435761u + 88172645463325252u;
    } else if (strcmp(word, "threads") == 0) {
        plan.threads = atol(value);
    } else if (strcmp(word, "strict") == 0) {
        plan.strict = atol(value) != 0;
    } else if (strcmp(word, "delay_us") == 0) {
        plan.delay_us = atol(value);
    } else if (strcmp(word, "random_us") == 0) {
        plan.random_us = atol(value);
    } else if (strcmp(word, "dead_after") == 0) {
        plan.dead_after = atol(value);
    } else if (!for_read && strncmp(word, "write_", 6) != 0) {
        die("HF3FS_STANDIN: no word %s", word);
    } else if (strcmp(what, "error") == 0) {
        add_rule(for_read, ERROR, value);
    } else if (strcmp(what, "short") == 0) {
        add_rule(for_read, SHORT, value);
    } else if (strcmp(what, "never") == 0) {
        add_rule(for_read, NEVER, value);
    } else {
        die("HF3FS_STANDIN: no word %s", word);
    }
}

static void take_path(char **path, const char *variable) {
    const char *now = getenv(variable);
    if (*path != NULL && now != NULL && strcmp(*path, now) == 0) return;
    static char *old[1024]; /* whoever looks at one may go on */
    static size_t count;
    if (*path != NULL) old[count++ % (sizeof old / sizeof *old)] = *path;
    *path = now != NULL && *now != 0 ? strdup(now) : NULL;
}

/* The environment is looked at here only: it may change under other threads. Another plan than the
 * last starts to count requests at 0. */
void read_plan(void) {
    const char *now = getenv("HF3FS_STANDIN");
    now = now ? now : "";
    take_path(&plan.dead_file, "HF3FS_STANDIN_DEAD");
    take_path(&plan.hung_file, "HF3FS_STANDIN_HUNG");
    take_path(&plan.log_file, "HF3FS_STANDIN_LOG");
    if (text != NULL && strcmp(text, now) == 0) return;
    free(text);
    text = strdup(now);
    plan.delay_us = plan.random_us = 0;
    plan.threads = 4;
    plan.dead_after = LONG_MAX;
    plan.strict = true;
    seed = 88172645463325252u;
    rule_count = 0;
    read_count = write_count = 0;
    char *words = strdup(now), *rest = NULL;
    for (char *word = strtok_r(words, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
        parse(word);
    free(words);
}

struct fate next_fate(bool for_read) {
    const long k = for_read ? ++read_count : ++write_count;
    struct fate fate = {.most = -1};
    for (int i = 0; i < rule_count; i++) {
        const struct rule *rule = &rules[i];
        if (rule->for_read != for_read) continue;
        if (rule->percent ? (long)random_below(100) >= rule->which
            : rule->on    ? k < rule->which
                          : k != rule->which)
            continue;
        if (rule->what == ERROR) fate.error = (int)rule->value;
        if (rule->what == SHORT) fate.most = rule->value;
        if (rule->what == NEVER) fate.never = true;
    }
    return fate;
}

static bool there(const char *path) {
    return path != NULL && access(path, F_OK) == 0;
}

bool can_die(void) {
    return plan.dead_file != NULL || plan.dead_after != LONG_MAX;
}

bool daemon_dead(void) {
    static bool was_dead;
    const bool dead = read_count + write_count >= plan.dead_after || there(plan.dead_file);
    if (dead && !was_dead) daemon_died();
    was_dead = dead;
    return dead;
}

bool daemon_hung(void) {
    return there(plan.hung_file);
}

void write_log(void) {
    const char *path = plan.log_file;
    char new_path[PATH_MAX];
    if (path == NULL || snprintf(new_path, sizeof new_path, "%s.new", path) >= PATH_MAX) return;
    FILE *file = fopen(new_path, "w");
    if (file == NULL) return;
    const struct counters *c = &counters;
    fprintf(file,
            "{\"reads\": %ld, \"writes\": %ld, \"read_bytes\": %ld, \"written_bytes\": %ld,\n"
            " \"linked_bytes\": %ld,\n",
            c->reads, c->writes, c->read_bytes, c->written_bytes, c->linked_bytes);
    fprintf(file, " \"submits\": %ld, \"waits\": %ld, \"fsyncs\": %ld, \"in_flight_most\": %ld,\n",
            c->submits, c->waits, c->fsyncs, c->in_flight_most);
    fprintf(file,
            " \"registrations\": %ld, \"deregistrations\": %ld, \"rings\": %ld, \"iovs\": %ld,\n",
            c->registrations, c->deregistrations, c->rings, c->iovs);
    fprintf(file, " \"renamed_unsynced\": %ld, \"closed_registered\": %ld, \"stale_links\": %ld,\n",
            c->renamed_unsynced, c->closed_registered, c->stale_links);
    fprintf(file,
            " \"registered\": %ld, \"open_rings\": %ld, \"open_iovs\": %ld, \"in_flight\": %ld}\n",
            c->registered, c->open_rings, c->open_iovs, c->in_flight);
    if (fclose(file) == 0) rename(new_path, path);
}
