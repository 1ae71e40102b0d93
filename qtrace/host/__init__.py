"""What this host tells of processes, descriptors, sockets, mounts: /proc and netlink, no more.

Nothing here opens or asks for a file of another process's, which may hang for ever behind a dead
file system: only names of links, and what /proc itself says.
"""
