// Preloaded into the children of `--local`: when the command that started them is gone, however it ended, they drain and
// end as on SIGTERM. The channel to the parent closes even when the parent was killed.
process.once('disconnect', () => process.kill(process.pid, 'SIGTERM'));
process.channel?.unref();
