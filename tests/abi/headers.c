/* SPDX-License-Identifier: MIT
 *
 * Compiles as C11 (with _POSIX_C_SOURCE) and as C++17 without a warning: the headers as a third
 * party includes them, every wrapper used once.
 */
#include "ucm/store_v1.h"
#include "ucm/task_v1.h"

int main(void) {
    ucm_status (*const starts[])(ucm_store *, const ucm_transfer *, ucm_task *, ucm_error *) = {
        ucm_load, ucm_dump};
    ucm_status (*const ids[])(ucm_store *, const ucm_ids_args *, ucm_error *) = {
        ucm_prefetch, ucm_touch, ucm_remove};
    ucm_status (*const waits[])(ucm_store *, const ucm_wait_args *, ucm_report *, ucm_error *) = {
        ucm_drain, ucm_close};
    ucm_status (*const lookup)(ucm_store *, const ucm_lookup_args *, ucm_error *) = ucm_lookup;
    ucm_status (*const cancel)(ucm_store *, ucm_task, ucm_error *) = ucm_cancel;
    ucm_status (*const metrics)(ucm_store *, const ucm_metrics_args *, ucm_error *) = ucm_metrics;
    ucm_status (*const memory)(ucm_store *, const ucm_memory_args *, ucm_error *) =
        ucm_register_memory;
    const ucm_plane planes[2] = {{1, UCM_DTYPE_BF16, UCM_PLANE_K},
                                 {2, UCM_DTYPE_BF16, UCM_PLANE_V}};
    ucm_waiter *waiter = ucm_waiter_new(1, NULL, NULL);
    int wrong = 0;
    (void)starts, (void)ids, (void)waits, (void)lookup, (void)cancel, (void)metrics, (void)memory;
    wrong |= !waiter;
    wrong |= UCM_AT(ucm_plane, planes, sizeof planes[0], 1)->bytes != 2;
    wrong |= ucm_waiter_check(waiter) != UCM_PENDING;
    wrong |= ucm_waiter_wait(waiter, 0) != UCM_PENDING;
    ucm_waiter_forget(waiter);
    return wrong;
}
