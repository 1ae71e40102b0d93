/*
 * What every firmware of the laboratory begins and ends with: from reset in real mode to flat
 * 32-bit segments, above which all devices lie. To be included before the code; the includer
 * defines SIZE, how much of the chip's end it is, a power of two of at least 256.
 */

#define CODE_SELECTOR 0x08
#define DATA_SELECTOR 0x10
#define IN_SEGMENT(label) (label - _start + 0x10000 - SIZE) /* CS is 0xffff0000 after reset */

        /* At label real_mode; goes on at label flat, in 32 bits, with DS not loaded yet. */
        .macro  enter_flat_mode
        lgdtl   %cs:IN_SEGMENT(gdt_pointer)
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $CODE_SELECTOR, $flat
        .code32
        .endm

        .macro  flat_segments
        .balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff      /* code: base 0, 4 GiB, 32-bit */
        .quad   0x00cf93000000ffff      /* data: base 0, 4 GiB */
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt
        .endm

        /* The first instruction after reset is fetched 16 bytes below 4 GiB. */
        .macro  reset_vector
        .org    SIZE - 16
        .code16
        jmp     real_mode
        .org    SIZE
        .endm
