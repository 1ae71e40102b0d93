/*
 * A guest that asks for one file of a 9pfs share by its name, and nothing else.
 *
 * Legacy virtio over PCI (slot 4 of the pc machine), one request at a time, each answered before
 * the next one: 9P2000.L's Tversion, Tattach, Twalk. Of a chip that ends at 4 GiB these are the
 * last bytes, as of the laboratory's firmware.
 */

#define SIZE 0x200
#include "flat_mode.S"
#include "legacy_virtio.S"

#define ANSWER 0x20000
#define ANSWER_BYTES 8192

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

        /* A message, and room for its answer; the ring leads to the first descriptor always. */
        movl    $QUEUE, %edi
        movw    $1, 12(%edi)
        movw    $1, 14(%edi)
        movl    $ANSWER, 16(%edi)
        movl    $ANSWER_BYTES, 24(%edi)
        movw    $2, 28(%edi)
        status  7

        movl    $messages, %esi
        xorl    %ebx, %ebx              /* how many were made available */
ask:
        movl    (%esi), %eax            /* a message begins with its length */
        movl    %esi, (%edi)
        movl    %eax, 8(%edi)
        addl    %eax, %esi
        incl    %ebx
        movw    %bx, AVAILABLE + 2
        notify
1:      pause
        cmpw    %bx, USED + 2
        jne     1b
        cmpl    $end_of_messages, %esi
        jb      ask
2:      hlt
        jmp     2b

        .macro  text value
        .word   9f - . - 2
        .ascii  "\value"
9:
        .endm
        .macro  message kind, tag
        .long   8f - .                  /* the one that follows ends there */
        .byte   \kind
        .word   \tag
        .endm

messages:
        message 100, 0xffff             /* Tversion: the longest message */
        .long   ANSWER_BYTES
        text    9P2000.L
8:
        message 104, 0                  /* Tattach: fid 0, no authentication, user, share */
        .long   0, 0xffffffff
        text    ""
        text    ""
        .long   0
8:
        message 110, 0                  /* Twalk: from fid 0 to fid 1, one name */
        .long   0, 1
        .word   1
        text    NAME
8:
end_of_messages:

        flat_segments

        reset_vector
