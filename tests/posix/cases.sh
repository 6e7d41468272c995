# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh disable=SC2016 # The commands are for another shell.
#
# What a file system does, case by case, as far as busybox can ask: run by scripts/posix-cases once on a directory of the
# host's and once on the same through virtio-fs. sh cases.sh DIRECTORY prints a line a case: its name, exit status, output.
cd "$1" || exit 1
umask 022

# case NAME COMMAND: in a directory of its own.
case_of() {
  mkdir "$1" && (cd "$1" && output=$(sh -c "$2" 2>&1) && status=0 || status=$?
    printf '%s [%s] %s\n' "$1" "${status:-0}" "$(printf '%s' "$output" | sed 's/^.*: \([A-Z][a-z ]*\)$/\1/' | tr '\n' ' ')")
}
as_user() {
  printf "start-stop-daemon -S -q -c 1000:1000 -p /no.pid -a %s -- -c '%s'" "$(command -v sh)" "$1"
}

case_of create 'echo x > a; stat -c "%a %u %g %s %h" a'
case_of umask 'umask 077; echo x > a; mkdir d; stat -c %a a d'
case_of exclusive 'set -C; echo x > a; echo y > a'
case_of append 'echo a > f; for i in 1 2 3; do echo $i >> f; done; cat f'
case_of truncate 'echo abcdef > f; truncate -s 3 f; cat f; truncate -s 6 f; stat -c %s f; od -c f | head -n 1'
case_of sparse 'dd if=/dev/zero of=f bs=1 count=1 seek=1048576 2>/dev/null; stat -c "%s" f; [ "$(stat -c %b f)" -lt 100 ] && echo holes'
case_of large_offset 'dd if=/dev/zero of=f bs=1 count=1 seek=5368709120 2>/dev/null; stat -c %s f'
case_of overwrite_part 'echo abcdef > f; printf XY | dd of=f bs=1 seek=2 conv=notrunc 2>/dev/null; cat f'
case_of fsync 'dd if=/dev/zero of=f bs=4096 count=2 conv=fsync 2>/dev/null; stat -c %s f'
case_of chmod 'echo x > a; chmod 4751 a; stat -c %a a; chmod 0 a; stat -c %a a'
case_of chown 'echo x > a; chown 1000:77 a; stat -c %u:%g a'
case_of chown_clears_setuid 'echo x > a; chmod 6755 a; chown 1000:1000 a; stat -c %a a'
case_of write_clears_setuid 'echo x > a; chmod 6777 a; chmod 777 .; '"$(as_user 'echo y >> a')"'; stat -c %a a'
case_of setgid_directory 'mkdir d; chgrp 77 d; chmod 2755 d; echo x > d/a; mkdir d/e; stat -c "%g %a" d/a d/e'
case_of hard_link 'echo x > a; ln a b; stat -c %h a; rm a; cat b; stat -c %h b'
case_of hard_link_directory 'mkdir d; ln d e'
case_of symlink 'ln -s nowhere l; readlink l; cat l; stat -c %F l'
case_of symlink_loop 'ln -s l l; cat l'
case_of symlink_long 'ln -s "$(printf %0300d 0)" l; readlink l | wc -c'
case_of rename_over 'echo a > a; echo b > b; mv a b; cat b; ls'
case_of rename_directory 'mkdir -p d/e; mv d f; ls f'
case_of rename_onto_full_directory 'mkdir -p a b/c; mv -T a b'
case_of rename_into_itself 'mkdir d; mv d d/e'
case_of rename_open 'echo x > a; exec 3< a; mv a b; cat <&3'
case_of unlink_open 'echo x > a; exec 3<> a; rm a; echo yy >&3; cat /proc/self/fd/3; ls'
case_of unlink_directory 'mkdir d; unlink d'
case_of rmdir_full 'mkdir -p d/e; rmdir d'
case_of rmdir_open 'mkdir d; cd d; rmdir ../d; ls; echo x > a'
case_of name_255 'n=$(printf %0255d 0); echo x > $n; ls | wc -c'
case_of name_256 'echo x > "$(printf %0256d 0)"'
case_of name_bytes 'touch "$(printf "a\377 b\tc")"; ls | od -c | head -n 1'
case_of deep 'd=x; for i in 1 2 3 4 5 6 7 8 9; do d=$d/$d; [ ${#d} -gt 900 ] && break; done; mkdir -p $d && echo x > $d/f && cat $d/f'
case_of many 'for i in $(seq 300); do : > f$i; done; ls | wc -l; rm f*; ls | wc -l'
case_of times 'echo x > a; touch -d "2001-02-03 04:05:06" a; stat -c %Y a; touch -d "@1" a; stat -c "%X %Y" a'
case_of times_change 'touch -d @1 .; echo x > a; [ "$(stat -c %Y .)" -gt 1 ] && echo changed'
case_of fifo 'mkfifo p; echo x > p & cat p; stat -c %F p'
case_of device 'mknod n c 1 3; stat -c "%F %t %T" n; echo x > n && echo written'
case_of not_a_directory 'echo x > a; cat a/b'
case_of no_such 'cat nothing'
case_of directory_as_file 'mkdir d; echo x > d'
case_of permission_read 'echo x > a; chmod 600 a; '"$(as_user 'cat a')"
case_of permission_write 'echo x > a; '"$(as_user 'echo y > a')"
case_of permission_directory 'mkdir d; chmod 700 d; '"$(as_user 'ls d')"
case_of permission_create "$(as_user 'echo x > a')"
case_of permission_own 'chmod 777 .; '"$(as_user 'echo x > a; stat -c %u:%g a; chmod 600 a; cat a')"
case_of permission_chown 'chmod 777 .; '"$(as_user 'echo x > a; chown 0 a')"
case_of sticky 'chmod 1777 .; echo x > a; '"$(as_user 'rm -f a')"
case_of execute 'printf "#!/bin/sh\necho ran\n" > a; ./a; chmod 755 a; ./a'
case_of write_read_two 'exec 3> a 4< a; echo x >&3; cat <&4; echo y >&3; cat <&4'
case_of allocate 'fallocate -l 8192 f; stat -c %s f'
case_of statfs 'df -P . | tail -n 1 | grep -c .'
