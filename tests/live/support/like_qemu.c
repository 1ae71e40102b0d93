/*
 * A small program with structures like QEMU's, for what a stripped QEMU cannot show: the names
 * of static functions, source lines, and variables by debug info. Its main thread hangs in a
 * nested aio_poll() of the main context, with a bottom half pending in the other.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { BH_PENDING = 1, BH_SCHEDULED = 2, BH_DELETED = 4, BH_ONESHOT = 8 };

typedef struct AioContext AioContext;
typedef struct QEMUBH QEMUBH;
typedef struct BHListSlice BHListSlice;

struct QEMUBH {
    AioContext *ctx;
    const char *name;
    void (*cb)(void *opaque);
    void *opaque;
    QEMUBH *next;
    _Atomic unsigned flags;
};

struct BHListSlice {
    QEMUBH *bh_list;
    BHListSlice *next;
};

struct AioContext {
    void *source[12]; /* GSource: its functions are what all contexts have in common */
    QEMUBH *_Atomic bh_list;
    struct {
        BHListSlice *first, **last;
    } bh_slice_list;
};

static AioContext *qemu_aio_context, *iohandler_ctx;

AioContext *qemu_get_aio_context(void)
{
    return qemu_aio_context;
}

AioContext *iohandler_get_aio_context(void)
{
    return iohandler_ctx;
}

__attribute__((noinline)) void aio_bh_call(QEMUBH *bh)
{
    QEMUBH *volatile kept = bh;

    bh->cb(bh->opaque);
    (void)kept->name;
}

int aio_bh_poll(AioContext *ctx)
{
    BHListSlice slice, *first;
    int ret = 0;

    slice.bh_list = atomic_exchange(&ctx->bh_list, NULL);
    slice.next = NULL;
    *ctx->bh_slice_list.last = &slice;
    ctx->bh_slice_list.last = &slice.next;
    while ((first = ctx->bh_slice_list.first)) {
        QEMUBH *bh = first->bh_list;
        unsigned flags;

        if (!bh) {
            ctx->bh_slice_list.first = first->next;
            if (!first->next) {
                ctx->bh_slice_list.last = &ctx->bh_slice_list.first;
            }
            continue;
        }
        first->bh_list = bh->next;
        bh->next = NULL;
        flags = atomic_fetch_and(&bh->flags, ~(BH_PENDING | BH_SCHEDULED));
        if ((flags & (BH_SCHEDULED | BH_DELETED)) == BH_SCHEDULED) {
            aio_bh_call(bh);
            ret = 1;
        }
        if (flags & (BH_DELETED | BH_ONESHOT)) {
            free(bh);
        }
    }
    return ret;
}

/* Without optimisation, so that only debug info tells where ctx is. */
__attribute__((noinline, optimize("O0"))) int aio_poll(AioContext *ctx, int blocking)
{
    int progress = aio_bh_poll(ctx);

    ppoll(NULL, 0, NULL, NULL);
    return progress + blocking;
}

__attribute__((noinline))
void aio_bh_schedule_oneshot_full(AioContext *ctx, void (*cb)(void *), void *opaque,
                                  const char *name)
{
    QEMUBH *bh = calloc(1, sizeof(*bh));

    bh->ctx = ctx;
    bh->name = name;
    bh->cb = cb;
    bh->opaque = opaque;
    bh->flags = BH_PENDING | BH_SCHEDULED | BH_ONESHOT;
    bh->next = atomic_load(&ctx->bh_list);
    while (!atomic_compare_exchange_weak(&ctx->bh_list, &bh->next, bh)) {
    }
}

static void first_sample_bh(void *opaque)
{
    *(int *)opaque = 1;
}

static void sample_bh(void *opaque)
{
    *(int *)opaque = 2;
}

static AioContext *context_new(void)
{
    AioContext *ctx = calloc(1, sizeof(*ctx));

    ctx->source[2] = context_new;
    ctx->bh_slice_list.last = &ctx->bh_slice_list.first;
    return ctx;
}

int main(void)
{
    int done = 0;

    qemu_aio_context = context_new();
    iohandler_ctx = context_new();
    aio_bh_schedule_oneshot_full(qemu_get_aio_context(), first_sample_bh, &done,
                                 "first_sample_bh");
    aio_bh_schedule_oneshot_full(iohandler_get_aio_context(), sample_bh, &done, "sample_bh");
    return aio_poll(qemu_get_aio_context(), done);
}
