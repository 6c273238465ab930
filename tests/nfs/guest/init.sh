# The guest's first process: makes it a machine with an NFS server, runs the tests, and powers off.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
hostname server
ip link set lo up
modprobe -a nfsd nfs nfsv3 nfsv4 dm-flakey veth
echo 'nfs: begin'
PYTHONPATH=/mnt/site PYTHONDONTWRITEBYTECODE=1 python3 -u /mnt/guest/main.py </dev/null 2>&1
sync
echo o >/proc/sysrq-trigger
sleep 60
