/*
 * A guest that reads REQUESTS times 4 KiB from a virtio-blk disk, and nothing else.
 *
 * Legacy virtio over PCI (slot 4 of the pc machine), up to BATCH requests at a time, then a
 * byte to the debug console, then the CPU halts. Of a chip that ends at 4 GiB these are the
 * last bytes, as of the laboratory's firmware.
 */

#define SIZE 0x200
#include "flat_mode.S"
#include "legacy_virtio.S"

#define DONE_PORT 0xe9

#define HEADERS 0x20000
#define STATES 0x21000
#define BUFFERS 0x30000
#define BATCH 32

        .text
        .globl  _start
_start:
        .code16
real_mode:
        cli
        enter_flat_mode

flat:
        movl    $DATA_SELECTOR, %eax
        movl    %eax, %ds
        movl    %eax, %es
        begin_device

        /* Request k: descriptors 3k to 3k+2, a header, a buffer, a state. */
        movl    $QUEUE, %edi
        xorl    %ecx, %ecx
describe:
        movl    %ecx, %eax
        shll    $4, %eax
        addl    $HEADERS, %eax
        movl    %eax, (%edi)
        movl    $16, 8(%edi)
        leal    (%ecx, %ecx, 2), %ebx
        incl    %ebx
        movw    $1, 12(%edi)
        movw    %bx, 14(%edi)
        leal    (, %ecx, 8), %edx
        movl    %edx, 8(%eax)           /* its sector; the type, 0, is a read */
        movl    %ecx, %eax
        shll    $12, %eax
        addl    $BUFFERS, %eax
        movl    %eax, 16(%edi)
        movl    $4096, 24(%edi)
        incl    %ebx
        movw    $3, 28(%edi)
        movw    %bx, 30(%edi)
        leal    STATES(%ecx), %eax
        movl    %eax, 32(%edi)
        movl    $1, 40(%edi)
        movw    $2, 44(%edi)
        addl    $48, %edi
        incl    %ecx
        cmpl    $BATCH, %ecx
        jne     describe
        status  7

        movl    $REQUESTS, %esi
        xorl    %ebx, %ebx              /* how many were made available */
batch:
        movl    $BATCH, %ecx
        cmpl    %ecx, %esi
        jae     1f
        movl    %esi, %ecx
1:      subl    %ecx, %esi
        xorl    %eax, %eax
2:      movl    %ebx, %edx
        andl    $127, %edx
        leal    (%eax, %eax, 2), %edi
        movw    %di, (AVAILABLE + 4)(, %edx, 2)
        incl    %ebx
        incl    %eax
        loop    2b
        movw    %bx, AVAILABLE + 2
        notify
3:      pause
        cmpw    %bx, USED + 2
        jne     3b
        testl   %esi, %esi
        jnz     batch

        movb    $'.', %al
        outb    %al, $DONE_PORT
4:      hlt
        jmp     4b

        flat_segments

        reset_vector
