package main

import "github.com/spf13/cobra"

func (a *app) commands() []*cobra.Command {
	return []*cobra.Command{a.demoCmd(), a.initCmd(), a.upCmd(), a.setCmd(), a.downCmd(), a.statusCmd(), a.pingCmd(), a.netcheckCmd(), a.ipCmd(), a.whyCmd(), a.logoutCmd(), a.aclCmd(),
		a.adminCmd(), a.nodeCmd(), a.coordinatorCmd(), a.relayCmd(), a.versionCmd()}
}
