#!/bin/bash
# A SLURM cluster of one node on the loopback, with one GPU that is an empty file, to try profiles/slurm on.
#   sudo apt-get install slurm-wlm munge                      (and slurmdbd mariadb-server for accounting)
#   sudo tests/slurm/cluster.sh start FOLDER [accounting]     starts munged, slurmctld, slurmd (slurmdbd, mariadbd)
#   sudo tests/slurm/cluster.sh stop FOLDER
# Everything it writes, logs included, is in FOLDER, but for the links in /etc/slurm: SLURM_CONF does not reach jobs, since
# Snakemake's plugin takes SLURM's variables out of their environment. Runs as root: jobs run as the user who submitted them.
set -euo pipefail
action=${1:?start or stop}
mkdir -p "${2:?folder}"
folder=$(cd "$2" && pwd)
accounting=${3:-}
name=$(hostname -s)
files=(slurm.conf gres.conf cgroup.conf slurmdbd.conf) # linked from /etc/slurm

daemons=(slurmd slurmctld slurmdbd mariadbd munged)
stop() {
    local daemon pid
    for daemon in "${daemons[@]}"; do
        pid=$(cat "$folder/$daemon.pid" 2>/dev/null) || continue
        kill "$pid" 2>/dev/null || continue
        for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    done
    local file
    for file in "${files[@]}"; do
        [ "$(readlink "/etc/slurm/$file")" != "$folder/$file" ] || rm "/etc/slurm/$file"
    done
}

wait_for() { # seconds, command
    local seconds=$1
    shift
    for _ in $(seq "$((seconds * 5))"); do "$@" >/dev/null 2>&1 && return; sleep 0.2; done
    echo "gave up after $seconds s: $*" >&2
    tail -n 20 "$folder"/*.log >&2
    exit 1
}

munge_socket=$folder/munge.socket
start_munge() {
    dd if=/dev/urandom bs=1 count=1024 of="$folder/munge.key" 2>/dev/null
    chmod 400 "$folder/munge.key"
    munged --force --key-file "$folder/munge.key" --socket "$munge_socket" --pid-file "$folder/munged.pid" \
        --log-file "$folder/munged.log" --seed-file "$folder/munge.seed"
    wait_for 10 munge --socket "$munge_socket" --no-input
}

start_accounting() {
    [ -d "$folder/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$folder/mysql" >"$folder/mariadb.log" 2>&1
    mariadbd --no-defaults --user=root --datadir="$folder/mysql" --socket="$folder/mysql.socket" --skip-networking \
        --pid-file="$folder/mariadbd.pid" >>"$folder/mariadb.log" 2>&1 &
    wait_for 60 mariadb --no-defaults --socket="$folder/mysql.socket" --execute "create database if not exists slurm_acct_db"
    cat >"$folder/slurmdbd.conf" <<EOF
AuthType=auth/munge
AuthInfo=socket=$munge_socket
DbdHost=localhost
DbdPort=16819
SlurmUser=root
LogFile=$folder/slurmdbd.log
PidFile=$folder/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageUser=root
StorageLoc=slurm_acct_db
EOF
    chmod 600 "$folder/slurmdbd.conf"
    # the database is reached by its socket alone
    MYSQL_UNIX_PORT="$folder/mysql.socket" slurmdbd
    wait_for 60 sacctmgr --noheader show cluster
    sacctmgr --immediate add cluster loopback >/dev/null
    sacctmgr --immediate add account research description=tests organization=tests >/dev/null
    sacctmgr --immediate add user "${SUDO_USER:-root}" account=research >/dev/null
}

start() {
    [ ! -e /etc/slurm/slurm.conf ] || { echo "/etc/slurm/slurm.conf is there: this machine has a SLURM" >&2; exit 1; }
    mkdir -p "$folder/state" "$folder/spool"
    touch "$folder/gpu0"
    echo "Name=gpu Type=toy File=$folder/gpu0" >"$folder/gres.conf"
    echo "CgroupPlugin=autodetect" >"$folder/cgroup.conf"
    cat >"$folder/slurm.conf" <<EOF
ClusterName=loopback
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$munge_socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
ReturnToService=2
SchedulerParameters=sched_interval=2,batch_sched_delay=1
$([ "$accounting" ] && printf '%s\n' AccountingStorageType=accounting_storage/slurmdbd AccountingStorageHost=localhost \
        AccountingStoragePort=16819 AccountingStoragePass="$munge_socket" AccountingStorageEnforce=associations JobAcctGatherType=jobacct_gather/linux)
NodeName=$name NodeAddr=127.0.0.1 CPUs=$(getconf _NPROCESSORS_ONLN) RealMemory=4000 Gres=gpu:toy:1 State=UNKNOWN
PartitionName=gpus Nodes=$name Default=YES MaxTime=60 State=UP
EOF
    ln -sf "${files[@]/#/$folder/}" /etc/slurm
    start_munge
    [ -z "$accounting" ] || start_accounting
    slurmctld
    slurmd || { tail "$folder/slurmd.log" >&2; exit 1; }
    wait_for 30 sh -c 'sinfo --noheader --format=%t | grep -q idle'
    sinfo --format="%P %t %c cores, %m MB, %G"
}

case $action in
    start) start ;;
    stop) stop ;;
    *) echo "start or stop, not '$action'" >&2; exit 2 ;;
esac
