/* SPDX-License-Identifier: MIT
 *
 * Copyright (C) 2017-2025 WireGuard LLC. All Rights Reserved.
 */

package device

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

/* Outbound flow
 *
 * 1. TUN queue
 * 2. Routing (sequential)
 * 3. Nonce assignment (sequential)
 * 4. Encryption (sequential)
 * 5. Transmission (sequential)
 *
 * The functions in this file occur (roughly) in the order in
 * which the packets are processed.
 *
 * One goroutine takes a batch through all of it, so the order of packets is
 * maintained (per peer and function that the TUN is read with).
 *
 * The content is preceded by enough "junk" to contain the transport header
 * (to allow the construction of transport messages in-place)
 */

type QueueOutboundElementsContainer struct {
	elems [][]byte                         // packets, each behind room for the transport header
	nonce [chacha20poly1305.NonceSize]byte // here because it would escape
}

/* Queues a keepalive if no packets are queued for peer
 */
func (peer *Peer) SendKeepalive() {
	elemsContainer := peer.device.GetOutboundElementsContainer()
	defer peer.device.PutOutboundElementsContainer(elemsContainer)

	peer.queue.sending.Lock()
	defer peer.queue.sending.Unlock()

	if len(peer.queue.staged) == 0 {
		peer.device.log.Verbosef("%v - Sending keepalive packet", peer)
		keepalive := make([]byte, MessageTransportHeaderSize, MessageKeepaliveSize)
		elemsContainer.elems = append(elemsContainer.elems, keepalive)
	}
	peer.sendOrStageLocked(elemsContainer)
}

func (peer *Peer) SendHandshakeInitiation(isRetry bool) error {
	if !isRetry {
		peer.timers.handshakeAttempts.Store(0)
	}

	peer.handshake.mutex.RLock()
	if time.Since(peer.handshake.lastSentHandshake) < RekeyTimeout {
		peer.handshake.mutex.RUnlock()
		return nil
	}
	peer.handshake.mutex.RUnlock()

	peer.handshake.mutex.Lock()
	if time.Since(peer.handshake.lastSentHandshake) < RekeyTimeout {
		peer.handshake.mutex.Unlock()
		return nil
	}
	peer.handshake.lastSentHandshake = time.Now()
	peer.handshake.mutex.Unlock()

	peer.device.log.Verbosef("%v - Sending handshake initiation", peer)

	msg, err := peer.device.CreateMessageInitiation(peer)
	if err != nil {
		peer.device.log.Errorf("%v - Failed to create initiation message: %v", peer, err)
		return err
	}

	packet := make([]byte, MessageInitiationSize)
	_ = msg.marshal(packet)
	peer.cookieGenerator.AddMacs(packet)

	peer.timersAnyAuthenticatedPacketTraversal()
	peer.timersAnyAuthenticatedPacketSent()

	err = peer.SendBuffers([][]byte{packet})
	if err != nil {
		peer.device.log.Errorf("%v - Failed to send handshake initiation: %v", peer, err)
	}
	peer.timersHandshakeInitiated()

	return err
}

func (peer *Peer) SendHandshakeResponse() error {
	peer.handshake.mutex.Lock()
	peer.handshake.lastSentHandshake = time.Now()
	peer.handshake.mutex.Unlock()

	peer.device.log.Verbosef("%v - Sending handshake response", peer)

	response, err := peer.device.CreateMessageResponse(peer)
	if err != nil {
		peer.device.log.Errorf("%v - Failed to create response message: %v", peer, err)
		return err
	}

	packet := make([]byte, MessageResponseSize)
	_ = response.marshal(packet)
	peer.cookieGenerator.AddMacs(packet)

	err = peer.BeginSymmetricSession()
	if err != nil {
		peer.device.log.Errorf("%v - Failed to derive keypair: %v", peer, err)
		return err
	}

	peer.timersSessionDerived()
	peer.timersAnyAuthenticatedPacketTraversal()
	peer.timersAnyAuthenticatedPacketSent()

	// TODO: allocation could be avoided
	err = peer.SendBuffers([][]byte{packet})
	if err != nil {
		peer.device.log.Errorf("%v - Failed to send handshake response: %v", peer, err)
	}
	return err
}

func (device *Device) SendHandshakeCookie(initiatingElem *QueueHandshakeElement) error {
	device.log.Verbosef("Sending cookie response for denied handshake message for %v", initiatingElem.endpoint.DstToString())

	sender := binary.LittleEndian.Uint32(initiatingElem.packet[4:8])
	reply, err := device.cookieChecker.CreateReply(initiatingElem.packet, sender, initiatingElem.endpoint.DstToBytes())
	if err != nil {
		device.log.Errorf("Failed to create cookie reply: %v", err)
		return err
	}

	packet := make([]byte, MessageCookieReplySize)
	_ = reply.marshal(packet)
	// TODO: allocation could be avoided
	device.net.bind.Send([][]byte{packet}, initiatingElem.endpoint)

	return nil
}

func (peer *Peer) keepKeyFreshSending() {
	keypair := peer.keypairs.Current()
	if keypair == nil {
		return
	}
	nonce := keypair.sendNonce.Load()
	if nonce > RekeyAfterMessages || (keypair.isInitiator && time.Since(keypair.created) > RekeyAfterTime) {
		peer.SendHandshakeInitiation(false)
	}
}

func (device *Device) RoutineReadFromTUN(read ReadFunc) {
	defer func() {
		device.log.Verbosef("Routine: TUN reader - stopped")
		device.state.stopping.Done()
	}()

	device.log.Verbosef("Routine: TUN reader - started")

	var (
		batchSize   = device.BatchSize()
		readErr     error
		bufs        = make([][]byte, batchSize)
		elemsByPeer = make(map[*Peer]*QueueOutboundElementsContainer, batchSize)
		count       = 0
		sizes       = make([]int, batchSize)
		offset      = MessageTransportHeaderSize
	)

	lent := lends(device.tun.device)
	if !lent {
		for i := range bufs {
			buffer := device.GetMessageBuffer()
			defer device.PutMessageBuffer(buffer)
			bufs[i] = buffer[:]
		}
	}

	for {
		// read packets
		count, readErr = read(bufs, sizes, offset)
		for i := 0; i < count; i++ {
			if sizes[i] < 1 {
				continue
			}

			packet := bufs[i][offset : offset+sizes[i]]

			// lookup peer
			var peer *Peer
			switch packet[0] >> 4 {
			case 4:
				if len(packet) < ipv4.HeaderLen {
					continue
				}
				dst := packet[IPv4offsetDst : IPv4offsetDst+net.IPv4len]
				peer = device.allowedips.Lookup(dst)

			case 6:
				if len(packet) < ipv6.HeaderLen {
					continue
				}
				dst := packet[IPv6offsetDst : IPv6offsetDst+net.IPv6len]
				peer = device.allowedips.Lookup(dst)

			default:
				device.log.Verbosef("Received packet with unknown IP version")
			}

			if peer == nil {
				continue
			}
			elemsForPeer, ok := elemsByPeer[peer]
			if !ok {
				elemsForPeer = device.GetOutboundElementsContainer()
				elemsByPeer[peer] = elemsForPeer
			}
			elemsForPeer.elems = append(elemsForPeer.elems, bufs[i][:offset+sizes[i]])
		}

		for peer, elemsForPeer := range elemsByPeer {
			if peer.isRunning.Load() {
				peer.SendPackets(elemsForPeer)
			}
			device.PutOutboundElementsContainer(elemsForPeer)
			delete(elemsByPeer, peer)
		}
		if lent {
			clear(bufs[:count])
		}

		if readErr != nil {
			if errors.Is(readErr, tun.ErrTooManySegments) {
				// TODO: record stat for this
				// This will happen if MSS is surprisingly small (< 576)
				// coincident with reasonably high throughput.
				device.log.Verbosef("Dropped some packets from multi-segment read: %v", readErr)
				continue
			}
			if !device.isClosed() {
				if !errors.Is(readErr, os.ErrClosed) {
					device.log.Errorf("Failed to read packet from TUN device: %v", readErr)
				}
				go device.Close()
			}
			return
		}
	}
}

// SendPackets sends packets if there is a session, and stages copies of them if not. The packets stay the caller's.
func (peer *Peer) SendPackets(elemsContainer *QueueOutboundElementsContainer) {
	if peer.sendNow(elemsContainer) {
		return
	}
	peer.queue.sending.Lock()
	defer peer.queue.sending.Unlock()
	peer.sendOrStageLocked(elemsContainer)
}

// sendNow sends packets beside what others send, or reports that some are staged or are to be.
func (peer *Peer) sendNow(elemsContainer *QueueOutboundElementsContainer) bool {
	peer.queue.sending.RLock()
	defer peer.queue.sending.RUnlock()

	if !peer.isRunning.Load() || !peer.device.isUp() {
		return true
	}
	return len(peer.queue.staged) == 0 && peer.sendLocked(elemsContainer.elems, &elemsContainer.nonce)
}

func (peer *Peer) SendStagedPackets() {
	peer.queue.sending.Lock()
	defer peer.queue.sending.Unlock()

	if len(peer.queue.staged) > 0 {
		peer.sendStagedLocked()
	}
}

func (peer *Peer) FlushStagedPackets() {
	peer.queue.sending.Lock()
	defer peer.queue.sending.Unlock()

	for len(peer.queue.staged) > 0 {
		peer.unstageLocked()
	}
}

// The functions below are for holders of peer.queue.sending.

func (peer *Peer) sendOrStageLocked(elemsContainer *QueueOutboundElementsContainer) {
	if !peer.isRunning.Load() || !peer.device.isUp() {
		return
	}
	if len(peer.queue.staged) == 0 && peer.sendLocked(elemsContainer.elems, &elemsContainer.nonce) {
		return
	}
	for _, elem := range elemsContainer.elems {
		peer.stageLocked(elem)
	}
	peer.sendStagedLocked()
}

// stageLocked keeps a copy of a packet until there is a session. Of one peer the oldest make room. Where others have
// taken all of it, the packet is dropped.
func (peer *Peer) stageLocked(elem []byte) {
	size := stagedSize(elem)
	for len(peer.queue.staged) > 0 && peer.queue.stagedSize+size > MaxStagedSizePerPeer {
		peer.unstageLocked()
	}
	for peer.device.stagedSize.Add(size) > MaxStagedSize {
		peer.device.stagedSize.Add(-size)
		if len(peer.queue.staged) == 0 {
			return
		}
		peer.unstageLocked()
	}
	peer.queue.stagedSize += size
	staged := make([]byte, len(elem), len(elem)+PaddingMultiple+chacha20poly1305.Overhead)
	copy(staged, elem)
	peer.queue.staged = append(peer.queue.staged, staged)
}

// unstageLocked drops the oldest packet that is staged.
func (peer *Peer) unstageLocked() {
	size := stagedSize(peer.queue.staged[0])
	peer.queue.stagedSize -= size
	peer.device.stagedSize.Add(-size)
	peer.queue.staged[0] = nil
	peer.queue.staged = peer.queue.staged[1:]
	if len(peer.queue.staged) == 0 {
		peer.queue.staged = nil
	}
}

// stagedSize is what a packet that is staged takes in memory, at most.
func stagedSize(elem []byte) int64 {
	const overhead = 128 // of the allocator, and its place in the queue
	return int64(len(elem) + PaddingMultiple + chacha20poly1305.Overhead + overhead)
}

func (peer *Peer) sendStagedLocked() {
	elemsContainer := peer.device.GetOutboundElementsContainer()
	defer peer.device.PutOutboundElementsContainer(elemsContainer)

	for peer.isRunning.Load() && peer.device.isUp() {
		if peer.sendingKeypair() == nil {
			peer.SendHandshakeInitiation(false)
			return
		}
		count := min(len(peer.queue.staged), peer.device.BatchSize())
		if count == 0 {
			return
		}
		elemsContainer.elems = append(elemsContainer.elems[:0], peer.queue.staged[:count]...)
		if peer.sendLocked(elemsContainer.elems, &elemsContainer.nonce) {
			for range count {
				peer.unstageLocked()
			}
		}
		clear(elemsContainer.elems)
	}
}

// sendingKeypair is the one to send with now, nil if there has to be a handshake.
func (peer *Peer) sendingKeypair() *Keypair {
	keypair := peer.keypairs.Current()
	if keypair == nil || keypair.sendNonce.Load() >= RejectAfterMessages || time.Since(keypair.created) >= RejectAfterTime {
		return nil
	}
	return keypair
}

func calculatePaddingSize(packetSize, mtu int) int {
	lastUnit := packetSize
	if mtu == 0 {
		return ((lastUnit + PaddingMultiple - 1) & ^(PaddingMultiple - 1)) - lastUnit
	}
	if lastUnit > mtu {
		lastUnit %= mtu
	}
	paddedSize := ((lastUnit + PaddingMultiple - 1) & ^(PaddingMultiple - 1))
	if paddedSize > mtu {
		paddedSize = mtu
	}
	return paddedSize - lastUnit
}

// sendLocked encrypts packets in place and sends them, or reports that no keypair has nonces for them. It is also for who
// holds peer.queue.sending for reading.
func (peer *Peer) sendLocked(elems [][]byte, nonce *[chacha20poly1305.NonceSize]byte) bool {
	device := peer.device
	keypair := peer.sendingKeypair()
	if keypair == nil {
		return false
	}
	count := uint64(len(elems))
	counter := keypair.sendNonce.Add(count) - count
	if counter+count > RejectAfterMessages {
		keypair.sendNonce.Store(RejectAfterMessages)
		return false
	}

	dataSent := false
	mtu := int(device.tun.mtu.Load())
	for i := range elems {
		elems[i] = keypair.encrypt(elems[i], counter+uint64(i), mtu, nonce)
		if len(elems[i]) != MessageKeepaliveSize {
			dataSent = true
		}
	}

	peer.timersAnyAuthenticatedPacketTraversal()
	peer.timersAnyAuthenticatedPacketSent()

	err := peer.SendBuffers(elems)
	if dataSent {
		peer.timersDataSent()
	}
	if err != nil {
		var errGSO conn.ErrUDPGSODisabled
		if errors.As(err, &errGSO) {
			device.log.Verbosef(err.Error())
			err = errGSO.RetryErr
		}
	}
	if err != nil {
		device.log.Errorf("%v - Failed to send data packets: %v", peer, err)
		return true
	}

	peer.keepKeyFreshSending()
	return true
}

// encrypt makes a packet a transport message, in place.
func (keypair *Keypair) encrypt(elem []byte, counter uint64, mtu int, nonce *[chacha20poly1305.NonceSize]byte) []byte {
	var paddingZeros [PaddingMultiple]byte

	// populate header fields
	header := elem[:MessageTransportHeaderSize]

	fieldType := header[0:4]
	fieldReceiver := header[4:8]
	fieldNonce := header[8:16]

	binary.LittleEndian.PutUint32(fieldType, MessageTransportType)
	binary.LittleEndian.PutUint32(fieldReceiver, keypair.remoteIndex)
	binary.LittleEndian.PutUint64(fieldNonce, counter)

	// pad content to multiple of 16
	paddingSize := calculatePaddingSize(len(elem)-MessageTransportHeaderSize, mtu)
	elem = append(elem, paddingZeros[:paddingSize]...)

	// encrypt content
	binary.LittleEndian.PutUint64(nonce[4:], counter)
	return keypair.send.Seal(
		header,
		nonce[:],
		elem[MessageTransportHeaderSize:],
		nil,
	)
}
