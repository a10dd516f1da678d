// Greedy or coupled acceptance: drafts are accepted up to the first one that is not the target's choice.
//
// The choices of a plan row lie one after the other: one for each draft, and one more. chosen, drafts: [selected rows];
// drafts[i] is compared with chosen[i], but the last choice of each plan row is compared with nothing. starts: [plan_rows +
// 1]. accepted, noncausal: [plan_rows]. A row emits chosen[start ..= start + accepted]. If one of these is NO_TOKEN,
// accepted is NO_TOKEN. noncausal counts all drafts that equal the target's choice, even those behind the first that does
// not.
// Grid (ceil(plan_rows / 128)), block 128: a thread has one plan row.
#include <choice.cuh>

extern "C" __global__ void __launch_bounds__(128)
    accept(const u32 *chosen, const u32 *drafts, const u32 *starts, u32 *accepted, u32 *noncausal, u32 plan_rows) {
    wait_for_previous();
    let_next_start();
    u32 row = blockIdx.x * 128 + threadIdx.x;
    if (row >= plan_rows) {
        return;
    }
    u32 start = starts[row], end = starts[row + 1], stand = 0, equal = 0;
    bool failed = start == end, missed = false;
    for (u32 i = start; i < end; i++) {
        bool bad = chosen[i] == NO_TOKEN;
        failed |= bad && !missed;
        bool same = i + 1 < end && !bad && chosen[i] == drafts[i];
        equal += same;
        missed |= !same;
        stand += !missed;
    }
    accepted[row] = failed ? NO_TOKEN : stand;
    noncausal[row] = equal;
}
