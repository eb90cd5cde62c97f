#!/bin/bash
# A guest's own init: the load program ticks and checks its memory, and one kind of work (`dwcp.work=` on
# the kernel's command line) goes on for ever. On the second serial port, between the ticks: `WORKING` once
# the guest is as it shall be saved, then `WORK N` for every N pieces of work done and found right,
# `WORK BAD …` for what was found wrong. If a step fails the machine stops.
set -euo pipefail
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
port=/dev/ttyS1
say() { echo "$*" >"$port"; }

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mkdir -p /dev/pts /dev/shm /run/postgresql
chown postgres: /run/postgresql
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
hostname guest
stty -F "$port" 115200 raw -echo
# Ahead of the work: a late tick is to mean a late machine.
chrt --fifo 10 /usr/lib/dwcp/load "$port" &

# As on a machine that has been up for a while, part of the disk lies in memory.
find /usr/bin /usr/lib/x86_64-linux-gnu -xdev -type f -size -2M -print0 | sort -z | xargs -0 cat >/dev/null

# "redis": 60,000 JSON values and a writer.
work_redis() {
    redis-server --port 0 --unixsocket /run/redis.sock --save '' --appendonly no --dir /var/lib/redis \
        --daemonize yes --logfile /var/log/redis/guest.log
    until redis-cli -s /run/redis.sock ping >/dev/null 2>&1; do sleep 0.2; done
    exec /usr/lib/dwcp/redis-work /run/redis.sock "$port" 60000 200
}

# "postgres": pgbench, 20 transactions a second. Its own reports of progress are counted.
work_postgres() {
    pg_ctlcluster 15 main start
    runuser -u postgres -- createdb bench
    runuser -u postgres -- pgbench -q -i -s 8 bench
    runuser -u postgres -- psql -q -c checkpoint bench
    say WORKING
    local second=0
    runuser -u postgres -- pgbench -n -c 2 -R 20 -P 1 -T 1000000 bench 2>&1 | while read -r line; do
        case $line in
        progress:*" 0.0 tps"*) ;;
        progress:*" 0 failed"*) second=$((second + 1)); say "WORK $second" ;;
        progress:* | pgbench:*) say "WORK BAD $line" ;;
        esac
    done
}

# "build": a compiler at work on C. What it makes must be what it made the first time.
compile() { gcc -O1 -w -x c "-DSTB_${1}_IMPLEMENTATION" -c -o "$3" "/usr/include/stb/$2"; }
sources='SPRINTF:stb_sprintf.h RECT_PACK:stb_rect_pack.h DXT:stb_dxt.h PERLIN:stb_perlin.h
    IMAGE_WRITE:stb_image_write.h'
work_build() {
    mkdir -p /var/tmp/build
    cd /var/tmp/build
    for source in $sources; do
        compile "${source%:*}" "${source#*:}" "${source%:*}.first"
    done
    say WORKING
    local done=0
    while :; do
        for source in $sources; do
            compile "${source%:*}" "${source#*:}" object.o
            if cmp -s object.o "${source%:*}.first"; then
                done=$((done + 1)); say "WORK $done"
            else
                say "WORK BAD ${source#*:}"
            fi
        done
    done
}

# "idle": nothing but the ticks, and a sign of life.
work_idle() {
    say WORKING
    local second=0
    while :; do
        sleep 1
        second=$((second + 1))
        say "WORK $second"
    done
}

read -r words </proc/cmdline
for word in $words; do
    case $word in
    dwcp.work=redis | dwcp.work=postgres | dwcp.work=build | dwcp.work=idle) "work_${word#*=}" ;;
    esac
done
