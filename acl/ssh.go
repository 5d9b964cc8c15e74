package acl

// runSSH judges one entry of sshTests.
func (r *tester) runSSH(t *sshTest) {}
