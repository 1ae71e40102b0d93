/*
 * A guest that reads REQUESTS times 4 KiB from a virtio-blk disk, and nothing else.
 *
 * Legacy virtio over PCI (slot 4 of the pc machine), up to BATCH requests at a time, then a
 * byte to the debug console, then the CPU halts. Of a chip that ends at 4 GiB these are the
 * last bytes, as of the laboratory's firmware.
 */

#define SIZE 0x200
#include "flat_mode.S"

#define PCI_DEVICE 0x80002000
#define PORTS 0xc000
#define DONE_PORT 0xe9

/* A queue of 128 at 0x10000, as legacy virtio lays it out. */
#define QUEUE 0x10000
#define AVAILABLE (QUEUE + 128 * 16)
#define USED (QUEUE + 0x1000)
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

        .macro  configure register, value
        movw    $0xcf8, %dx
        movl    $(PCI_DEVICE + \register), %eax
        outl    %eax, %dx
        movw    $0xcfc, %dx
        movl    $\value, %eax
        outl    %eax, %dx
        .endm
        .macro  status value
        movw    $(PORTS + 18), %dx
        movb    $\value, %al
        outb    %al, %dx
        .endm

flat:
        movl    $DATA_SELECTOR, %eax
        movl    %eax, %ds
        movl    %eax, %es
        configure 0x10, PORTS + 1
        configure 0x04, 5               /* I/O ports, bus master */
        status  0
        status  1
        status  3
        xorl    %eax, %eax
        movw    $(PORTS + 4), %dx       /* no features */
        outl    %eax, %dx
        movw    $(PORTS + 14), %dx      /* the first queue */
        outw    %ax, %dx
        movw    $(PORTS + 8), %dx
        movl    $(QUEUE >> 12), %eax
        outl    %eax, %dx

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
        movw    $(PORTS + 16), %dx
        xorl    %eax, %eax
        outw    %ax, %dx
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
