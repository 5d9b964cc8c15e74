// Package sentry waits for a descriptor on a thread of its own.
//
//	Go's poller      epoll ─▶ a thread that has nothing else to do ─▶ a run queue ─▶ a goroutine
//	Sentry           poll(2) ─▶ the thread that waits is the one that goes on, and the kernel lets it before others
//
// While all of a program's threads are busy with a transfer, nobody of Go's looks what has come until one of them is done or
// 10 ms are over. What must not wait that long has a sentry.
package sentry
