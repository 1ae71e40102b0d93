/*
 * Legacy virtio over PCI: the device in slot 4 of the pc machine, and its first queue, of 128, at
 * 0x10000. To be included before the code.
 */

#define PCI_DEVICE 0x80002000
#define PORTS 0xc000
#define QUEUE 0x10000
#define AVAILABLE (QUEUE + 128 * 16)
#define USED (QUEUE + 0x1000)

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

        /* Up to DRIVER_OK, which is "status 7", when the queue is described. */
        .macro  begin_device
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
        .endm

        /* The device looks at the queue. */
        .macro  notify
        movw    $(PORTS + 16), %dx
        xorl    %eax, %eax
        outw    %ax, %dx
        .endm
