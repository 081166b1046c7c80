"""What docs/run/gateway.md promises: every bound is that of the code, every promise has its test.

A new limit in the code, a row in the table of limits or a sentence that is listed here fails until
page, code and tests agree again.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from medserve.gateway.core.shadow import ShadowBudget
from medserve.gateway.faces.page.jobs import PageLimits
from medserve.gateway.faces.rest.body import RestLimits

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "run" / "gateway.md"
GATEWAY = ROOT / "medserve" / "gateway"

# A number of the code, by module and name, and the row of the table that states it.
BOUNDS = {
    "core.gateway._ATTEMPTS": "calls whose worker ends",
    "core.gateway._CHUNKS_AHEAD": "parts of a stream",
    "core.comparison._MOST_PAIRS": "pairs of answers",
    "core.gathering.GATHERED_BYTES": "single calls that travel together",
    "core.gathering._CALL_BYTES": "single calls that travel together",
    "core.gathering._PARAMS_BYTES": "single calls that travel together",
    "core.guard.STREAMED_BYTES": "a message of a stream",
    "core.guard._LATE_QUESTIONS": "such questions",
    "core.guard._LATE_QUESTIONS_EACH": "such questions",
    "core.guard._LATE_S": "such questions",
    "core.guard._OPEN_STREAMS": "open streams of health",
    "core.guard._OPEN_STREAMS_EACH": "open streams of health",
    "core.guard._QUESTION_BYTES": "a question to health",
    "core.guard._SILENCE_BEFORE_OTHERS_S": "a message of a stream",
    "core.guard._SILENCE_S": "a message of a stream",
    "core.guard._WRITE_S": "time for a caller to take an answer",
    "core.shadow.ShadowBudget.calls": "copies of calls",
    "core.shadow.ShadowBudget.held_bytes": "copies of calls",
    "core.shadow.ShadowBudget.wait_s": "copies of calls",
    "core.uploads._LARGEST_AT_A_TIME": "a file of `Segment`",
    "core.wire_format._MOST_FIELDS": "fields of a message",
    "core.wire_format._SMALL_BYTES": "fields of a message",
    "faces.monailabel.app._MAX_LOGIN_BYTES": "JSON of an order",
    "faces.monailabel.sessions._LIFE_S": "images of MONAI Label's",
    "faces.monailabel.sessions._MOST": "images of MONAI Label's",
    "faces.monailabel.sessions._MOST_EACH": "images of MONAI Label's",
    "faces.oip.json_form._MOST_MEMBERS": "members of a JSON body",
    "faces.oip.json_form._MOST_NUMBERS": "members of a JSON body",
    "faces.oip.service._MAX_PARAMS_BYTES": "axes of a tensor",
    "faces.oip.service._MOST_PARTS": "axes of a tensor",
    "faces.oip.tensors._MOST_AXES": "axes of a tensor",
    "faces.oip.tensors._MOST_ELEMENTS": "elements of a tensor",
    "faces.page.context._MAX_JSON_BYTES": "JSON of an order",
    "faces.page.context._MAX_OPTIONS_BYTES": "options that a job",
    "faces.page.jobs._DECODED_AT_ONCE": "volumes that the page decodes",
    "faces.page.jobs.PageLimits.answer_s": "time for all of an upload",
    "faces.page.jobs.PageLimits.calls_in_flight": "calls of the page",
    "faces.page.jobs.PageLimits.holder_jobs": "jobs of the page",
    "faces.page.jobs.PageLimits.index_bytes": "names of the page's files",
    "faces.page.jobs.PageLimits.job_bytes": "files of the page's jobs",
    "faces.page.jobs.PageLimits.job_files": "files of the page's jobs",
    "faces.page.jobs.PageLimits.pack_files": "one upload to the page",
    "faces.page.jobs.PageLimits.retention_s": "jobs of the page",
    "faces.page.jobs.PageLimits.series_files": "one upload to the page",
    "faces.page.jobs.PageLimits.silence_s": "time for a small request",
    "faces.page.jobs.PageLimits.total_bytes": "files of the page's jobs",
    "faces.page.jobs.PageLimits.total_jobs": "jobs of the page",
    "faces.page.jobs.PageLimits.upload_bytes": "one upload to the page",
    "faces.page.jobs.PageLimits.upload_s": "time for all of an upload",
    "faces.page.jobs.PageLimits.uploads_in_flight": "uploads of the page",
    "faces.page.jobs.PageLimits.visitor_bytes": "files of the page's jobs",
    "faces.page.jobs.PageLimits.visitor_jobs": "jobs of the page",
    "faces.page.pages._MAX_FORM_BYTES": "JSON of an order",
    "faces.page.sessions._LIFE_S": "sessions of the page",
    "faces.page.sessions._MOST": "sessions of the page",
    "faces.page.sessions._MOST_EACH": "sessions of the page",
    "faces.page.uploads._HEADER_BYTES": "head of a part",
    "faces.page.uploads._NAME_LETTERS": "name of a file",
    "faces.rest.body.RestLimits.files": "elements of a tensor",
    "faces.rest.body.RestLimits.upload_s": "time between two pieces",
    "faces.rest.body._MAX_NAME": "name of a file",
    "faces.rest.body._MAX_TEXT_BYTES": "JSON of an order",
    "faces.rest.open_inference._MAX_JSON_BYTES": "JSON of an order",
    "faces.rest.tasks._ANSWER_BYTES": "an answer to a form",
    "faces.rest.tasks._MAX_JSON_BYTES": "JSON of an order",
    "faces.torchserve.request_head._MOST_FIELDS": "fields of a message",
    "faces.v1.service._IDLE_S": "time between two messages",
    "faces.v1.service._MAX_ID_BYTES": "settings of a typed stream",
    "faces.v1.service._MAX_SETTINGS_BYTES": "settings of a typed stream",
    "faces.v1.service._UPLOAD_S": "time between two messages",
    "http._HEADER_S": "time for a header",
    "http._MOST_CONNECTIONS": "HTTP connections",
    "http._READ_S": "time for a caller to take an answer",
    "server._AGE_GRACE_MS": "age of a gRPC connection",
    "server._HANDSHAKE_MS": "time for a header",
    "server._IDLE_MS": "gRPC connections",
    "server._MAX_CONNECTION_AGE_MS": "age of a gRPC connection",
    "server._PING_MS": "pings of a connection",
    "server._STREAMS": "gRPC calls of one connection",
}
# What sounds like a bound and bounds nothing that a caller takes: sizes of a read, of formats, and
# what the server keeps for itself.
INTERNAL = {
    "core.audit._TAIL_BYTES",
    "core.calls._HEAD_BYTES",
    "core.comparison._FEWEST_MASKS",
    "core.routes._DIGEST_BYTES",
    "core.watching._MOST",
    "core.watching._MOST_HELD",
    "core.watching._MOST_HELD_BYTES",
    "faces.page.app._ENVELOPE_BYTES",
    "faces.page.classify._LARGE_BYTES",
    "faces.page.exports._CHUNK_BYTES",
    "faces.page.jobs._CLASS_BYTES",
    "faces.page.jobs._ITEM_BYTES",
    "faces.page.jobs._VALUE_BYTES",
    "faces.page.pages._MAX_FIELDS",
    "faces.rest.body._ENVELOPE_BYTES",
    "faces.rest.body._MAX_DIGITS",
    "faces.rest.body._MAX_FIELD",
    "faces.torchserve.request_head._MOST_DIGITS",
    "faces.v1.messages._CHUNK_BYTES",
    "server._LARGE_BYTES",
}
_BOUND = re.compile(r"_(MOST|MAX|EACH|BYTES|FEWEST)(_|$)")

# A row of the table of limits, by how its first cell begins, and what holds it.
ROWS = {
    "memory of requests": (
        "gateway/test_bounds.py::"
        "test_whatever_arrives_no_more_is_given_out_than_there_is_and_everybody_has_a_turn",
        "gateway/test_bounds.py::"
        "test_the_bytes_of_a_cancelled_call_count_for_as_long_as_the_engine_has_them",
        "gateway/test_ports.py::test_many_large_uploads_need_no_more_memory_than_a_few",
    ),
    "a unary request": ("gateway/test_edge.py::test_a_message_over_the_limit_is_refused",),
    "a message of a stream": (
        "gateway/test_bounds.py::test_idle_streams_of_one_caller_keep_no_other_caller_out",
    ),
    "a file of `Segment`": (
        "gateway/test_uploads.py::test_a_file_over_the_limit_is_refused_before_it_is_sent",
        "gateway/test_uploads.py::test_a_full_disk_is_busy_and_leaves_nothing",
    ),
    "an HTTP body": (
        "gateway/test_bounds.py::test_a_body_that_announces_too_much_is_refused_before_its_first_byte",
        "gateway/test_bounds.py::test_slow_bodies_of_one_caller_leave_the_others_their_half_of_the_memory",
    ),
    "fields of a message": (
        "gateway/test_oip.py::test_millions_of_fields_are_refused_before_they_are_parsed",
        "gateway/test_request_head.py::"
        "test_more_fields_than_any_request_has_are_refused_before_they_hold_up_other_calls",
    ),
    "elements of a tensor": (
        "gateway/test_oip.py::test_a_malformed_request_is_refused_as_such",
        "gateway/test_rest.py::test_a_huge_file_in_a_form_and_too_many_files_are_refused",
    ),
    "axes of a tensor": (
        "gateway/test_oip.py::test_a_request_of_very_many_parts_is_refused_before_they_are_walked",
    ),
    "members of a JSON body": (
        "gateway/test_oip_http.py::test_very_many_members_are_refused_before_they_are_parsed",
        "gateway/test_oip_http.py::test_a_mask_too_large_for_json_comes_as_bytes_or_as_a_file",
    ),
    "JSON of an order": (
        "gateway/test_rest.py::test_an_order_that_is_no_order_is_refused_without_quoting_it",
        "web/test_sessions.py::test_a_large_login_is_not_read",
        "gateway/test_monailabel.py::test_a_large_login_is_not_read",
    ),
    "settings of a typed stream": (
        "gateway/test_bounds.py::test_settings_that_carry_megabytes_are_refused_instead_of_kept",
    ),
    "head of a part": (
        "web/test_uploads.py::test_a_body_that_is_not_what_it_says_is_refused_and_nothing_of_it_kept",
    ),
    "name of a file": (
        "web/test_uploads.py::test_names_never_become_paths",
        "gateway/test_rest.py::test_a_name_is_text_to_show_and_never_a_path",
    ),
    "time for a unary request": (
        "gateway/test_ports.py::test_an_upload_that_takes_for_ever_is_ended",
    ),
    "time between two messages": ("gateway/test_typed.py::test_a_silent_client_is_sent_away",),
    "time for a small request": (
        "web/test_uploads.py::test_a_small_request_that_does_not_come_is_not_waited_for",
        "web/test_uploads.py::test_a_sender_that_goes_silent_is_not_waited_for",
    ),
    "time for all of an upload": (
        "web/test_uploads.py::test_slow_senders_cannot_take_every_place_for_ever",
    ),
    "time between two pieces": (
        "gateway/test_rest.py::test_a_body_that_drips_is_cut_off",
        "gateway/test_rest.py::test_the_time_that_a_caller_names_is_kept",
    ),
    "parts of a stream": (
        "gateway/test_bounds.py::test_a_caller_who_takes_no_part_holds_back_the_model",
    ),
    "an answer to a form": (
        "gateway/test_bounds.py::test_lines_that_nobody_takes_hold_back_the_reading",
        "gateway/test_bounds.py::"
        "test_the_answer_to_a_form_is_bounded_unless_it_is_taken_line_by_line",
    ),
    "time for a caller to take": (
        "gateway/test_bounds.py::test_a_watcher_who_reads_nothing_keeps_no_news_from_others",
        "gateway/test_http.py::test_who_does_not_read_an_answer_is_cut_off",
    ),
    "open gRPC calls": (
        "gateway/test_bounds.py::test_one_caller_has_at_most_half_of_the_open_calls",
    ),
    "gRPC calls of one connection": (
        "gateway/test_bounds.py::test_resets_of_one_connection_end_no_call_of_another",
    ),
    "open streams of health": (
        "gateway/test_bounds.py::"
        "test_watchers_of_health_are_bounded_by_address_and_a_probe_always_gets_in",
    ),
    "a question to health": (
        "gateway/test_bounds.py::"
        "test_a_question_without_a_token_that_is_larger_than_any_is_refused",
    ),
    "such questions": (
        "gateway/test_bounds.py::"
        "test_questions_that_do_not_come_are_bounded_by_address_and_others_answered",
    ),
    "HTTP connections": (
        "gateway/test_http.py::test_idle_connections_of_one_address_make_room_for_its_next",
    ),
    "gRPC connections": (
        "gateway/test_bounds.py::test_connections_are_bounded_and_who_has_one_keeps_it",
    ),
    "age of a gRPC connection": (
        "gateway/test_ports.py::test_a_call_outlasts_the_age_of_its_connection",
    ),
    "pings of a connection": (
        "gateway/test_ports.py::test_a_client_may_ask_often_whether_its_connection_lives",
    ),
    "time for a header": (
        "gateway/test_http.py::test_a_header_that_does_not_come_ends_its_connection",
    ),
    "calls of a model": (
        "gateway/test_core.py::test_calls_beyond_the_queue_are_refused_with_a_time_to_come_back",
    ),
    "calls whose worker ends": (
        "gateway/test_core.py::test_a_request_that_ends_every_worker_is_told_and_not_sent_for_ever",
        "gateway/test_core.py::test_calls_whose_worker_ended_are_repeated_one_by_one",
    ),
    "single calls that travel together": (
        "gateway/test_gathering.py::test_no_call_is_larger_than_its_bounds",
        "gateway/test_gathering.py::test_a_call_of_another_kind_goes_its_own_way",
    ),
    "copies of calls": (
        "gateway/test_releases.py::"
        "test_copies_wait_for_idle_models_and_are_dropped_beyond_their_budget",
    ),
    "pairs of answers": (
        "gateway/test_releases.py::test_a_comparison_keeps_so_many_figures_and_no_more",
    ),
    "changes of what is served": (
        "gateway/test_versions.py::"
        "test_the_second_of_two_managers_hears_that_another_change_is_under_way",
    ),
    "volumes that the page decodes": (
        "web/test_masks.py::test_few_corrected_masks_are_decoded_at_a_time",
    ),
    "sessions of the page": (
        "web/test_sessions.py::test_one_holder_of_a_token_ends_only_sessions_of_their_own",
        "web/test_sessions.py::test_a_session_ends_after_a_working_day",
    ),
    "jobs of the page": (
        "web/test_jobs.py::test_jobs_of_one_holder_and_of_all_are_bounded",
        "web/test_jobs.py::test_a_job_is_deleted_after_its_time_unless_it_is_used",
    ),
    "files of the page's jobs": (
        "web/test_uploads.py::test_what_goes_beyond_a_quota_is_refused_and_the_rest_stays",
        "web/test_masks.py::test_what_is_made_of_a_visitors_files_counts_among_their_bytes",
        "web/test_masks.py::test_a_visitor_whose_results_have_passed_the_bound_makes_no_more_of_them",
    ),
    "options that a job": (
        "web/test_segmenting.py::test_options_that_are_longer_than_any_choice_are_not_kept",
    ),
    "names of the page's files": (
        "web/test_jobs.py::test_names_of_files_are_bounded_by_the_memory_that_they_take",
        "web/test_jobs.py::test_an_answered_file_takes_no_more_memory_than_is_counted_for_it",
        "web/test_uploads.py::test_what_is_known_of_files_is_counted_once_however_they_come",
    ),
    "one upload to the page": (
        "web/test_uploads.py::test_more_bytes_than_allowed_are_refused_before_they_come",
    ),
    "uploads of the page": (
        "web/test_jobs.py::test_uploads_of_one_holder_leave_places_for_others",
    ),
    "calls of the page": ("web/test_jobs.py::test_calls_of_one_holder_let_those_of_others_pass",),
    "images of MONAI Label's": (
        "gateway/test_monailabel.py::test_sessions_are_bounded_and_those_not_used_are_deleted",
    ),
    "scans of a JPEG": (
        "imaging/test_raster.py::test_a_jpeg_of_many_scans_is_refused_by_the_work_that_it_asks_for",
    ),
}

# What else the page promises, in its own words, and what holds it.
PROMISES = {
    "the kind of call decides whether the model streams": (
        "gateway/test_core.py::test_a_unary_call_never_asks_for_a_stream_whatever_its_caller_wrote",
        "gateway/test_edge.py::test_a_unary_call_of_a_streaming_model_leaves_its_worker_alive",
    ),
    "health is what a canary or an answer proved seconds ago": (
        "gateway/test_health.py::test_nothing_serves_before_its_golden_input_was_answered",
        "gateway/test_health.py::test_a_worker_that_is_ready_but_stuck_is_not_serving_within_seconds",
    ),
    "uploads wait until there is memory": (
        "gateway/test_edge.py::test_uploads_beyond_the_memory_take_turns_and_each_is_answered",
        "gateway/test_ports.py::test_many_large_uploads_need_no_more_memory_than_a_few",
    ),
    "a cancelled call keeps its place, so the queue stays where it can be left": (
        "gateway/test_core.py::test_a_cancelled_call_keeps_its_place_until_the_engine_is_done_with_it",
        "gateway/test_edge.py::test_a_thousand_cancelled_calls_leave_the_models_well",
    ),
    "Any TorchServe client works at 8001 as it does at 7070.": (
        "gateway/test_edge.py::test_a_torchserve_client_gets_its_answer",
    ),
    "`grpcurl` needs no protocol files": (
        "serving/test_grpcurl.py::test_the_gateway_answers_without_a_protoset",
    ),
    "`x-request-id` comes back with the answer": (
        "gateway/test_edge.py::test_the_request_id_comes_back",
    ),
    "other text could hold a person's name and is replaced": (
        "gateway/test_core.py::test_a_request_id_that_could_hold_a_name_is_replaced",
    ),
    "one message from any other model": (
        "gateway/test_edge.py::test_an_ordinary_model_streams_one_message",
    ),
    "what changes them is refused to who may not [manage](releases.md)": (
        "gateway/test_management.py::test_who_may_not_manage_is_refused_on_every_address",
    ),
    "Each answer has the form of a single call, byte for byte": (
        "gateway/test_gathering.py::test_everybody_gets_the_answer_of_a_call_of_their_own",
    ),
    "`grpc-status-details-bin` holds a `google.rpc.Status`": (
        "gateway/test_edge.py::test_an_error_tells_programs_its_code",
        "gateway/test_edge.py::test_a_full_queue_tells_when_to_come_back",
    ),
    "A batched model answers a bad image in a lone call with a JSON body": (
        "gateway/test_edge.py::test_the_body_of_a_batched_models_error_stays_a_body",
    ),
    "only a token that opens a model gets its health": (
        "gateway/test_bounds.py::test_who_may_not_use_a_model_does_not_learn_whether_it_is_there",
    ),
    "sends a canary; if that is not answered within `--canary-timeout-s`": (
        "gateway/test_health.py::"
        "test_a_model_that_serves_is_doubted_when_a_call_takes_far_too_long",
    ),
    "the model serves again once it has answered": (
        "gateway/test_health.py::test_a_killed_worker_is_not_serving_and_then_serving_again",
    ),
    "a new entry counts within a second, a deleted one no longer counts": (
        "gateway/test_tokens.py::"
        "test_a_new_token_counts_and_a_removed_one_does_not_without_a_restart",
    ),
    "ends its open streams within two seconds": (
        "gateway/test_bounds.py::test_a_token_that_is_taken_away_ends_its_streams_and_no_others",
    ),
    "A file that cannot be read leaves the tokens of before in force": (
        "gateway/test_tokens.py::test_a_broken_file_leaves_the_tokens_of_before",
    ),
    "A caller without the scope of a model does not learn whether it exists.": (
        "gateway/test_core.py::"
        "test_a_model_outside_the_callers_scopes_is_forbidden_whether_it_exists_or_not",
        "gateway/test_fuzz.py::test_no_method_answers_without_a_token_that_opens_the_model",
    ),
    "Files that are replaced count without a restart": (
        "gateway/test_ports.py::test_a_renewed_certificate_counts_for_the_next_connection",
        "gateway/test_ports.py::"
        "test_an_authority_that_was_replaced_opens_no_port_and_its_successor_names_the_callers",
    ),
    "demands a certificate of that authority from every client": (
        "gateway/test_ports.py::test_with_an_authority_for_clients_only_its_certificates_open",
    ),
    "No pixel, name, tag, parameter or error text.": (
        "gateway/test_audit.py::test_a_call_leaves_one_line_without_anything_of_its_input",
        "gateway/test_fuzz.py::test_no_text_of_a_request_is_logged_counted_or_quoted_in_an_error",
    ),
    "A changed, removed or inserted line is named.": (
        "gateway/test_audit.py::test_an_altered_log_is_found",
    ),
    "An answer that cannot be logged, on a full disk, is not given": (
        "gateway/test_audit.py::test_an_answer_that_cannot_be_logged_is_not_given",
        "gateway/test_audit.py::test_no_part_of_a_stream_that_cannot_be_logged_is_given",
    ),
    "One process writes a file; a second gateway is refused.": (
        "gateway/test_audit.py::test_two_gateways_do_not_write_one_log",
    ),
    "A call whose client leaves the queue never reaches TorchServe.": (
        "gateway/test_core.py::test_a_call_that_is_cancelled_in_the_queue_never_reaches_the_engine",
    ),
    "A caller is known by the name of the token, else by that of the certificate": (
        "gateway/test_core.py::"
        "test_without_tokens_everybody_may_call_and_is_named_by_their_certificate",
        "gateway/test_bounds.py::test_an_address_is_counted_by_what_its_owner_cannot_change",
    ),
    "What one caller does takes their own share of each resource and nobody else's": (
        "gateway/test_ports.py::test_one_slow_caller_does_not_keep_the_others_from_sending",
    ),
    "all count while a request waits for memory, for its place and for its answer": (
        "gateway/test_bounds.py::test_waiting_for_memory_ends_with_the_callers_deadline",
        "gateway/test_core.py::test_a_deadline_ends_the_wait_in_the_queue_and_in_the_engine",
        "gateway/test_request_head.py::test_the_time_that_a_caller_allows_is_read_beside_the_model",
    ),
    "is deleted with its call, what a killed gateway left at the next start": (
        "gateway/test_uploads.py::test_a_file_of_any_size_arrives_whole_and_is_deleted",
        "gateway/test_uploads.py::test_what_an_earlier_gateway_left_is_deleted_and_nothing_else",
    ),
    "On SIGTERM health turns NOT_SERVING": (
        "gateway/test_ports.py::test_running_calls_finish_while_health_says_no",
    ),
    "then new ones get UNAVAILABLE": (
        "gateway/test_ports.py::test_no_call_is_cancelled_because_it_came_as_the_gateway_stopped",
    ),
    "idle streams, watchers and bodies that do not come on end after two seconds": (
        "gateway/test_bounds.py::test_who_stops_the_gateway_waits_for_no_idle_stream",
        "gateway/test_http.py::test_a_silent_body_does_not_hold_up_the_end",
    ),
    "or that uses no processor time while jobs wait, is ended after 4 s and 8 s": (
        "engine/test_supervision.py::test_a_stopped_worker_stands_still_whether_jobs_wait_or_not",
        "engine/test_supervision.py::"
        "test_a_worker_that_uses_no_processor_while_jobs_wait_stands_still",
    ),
    "a model without any living worker for a minute is started again": (
        "engine/test_supervision.py::"
        "test_a_model_without_a_living_worker_is_started_again_once_in_a_while",
    ),
    "A call whose worker ends is repeated, so its caller waits and hears nothing of it.": (
        "gateway/test_core.py::test_a_call_whose_worker_is_killed_is_answered_by_the_next_one",
        "benchmarks/test_endurance.py::test_workers_that_are_killed_under_load_lose_no_answer",
    ),
    "such a call is asked again three seconds after it was seen to be missing": (
        "serving/test_client.py::test_a_worker_killed_while_its_batch_is_filled_costs_no_answer",
        "engine/test_unanswered.py::test_a_call_is_lost_when_a_worker_ended_and_the_queue_is_empty",
    ),
    "Whichever ends by itself ends the command with its reason": (
        "gateway/test_beside.py::test_the_end_of_torchserve_ends_the_wait_with_its_reason",
    ),
    "model labels are only ever names that are served": (
        "gateway/test_core.py::test_what_a_call_cost_is_counted_under_names_that_are_served",
    ),
    "Calls of a model in the engine; 0: twice what it takes at once.": (
        "gateway/test_bounds.py::test_a_gate_follows_the_number_of_workers",
    ),
    "What Kubernetes sets for a Service, such as `MEDSERVE_GATEWAY_PORT`, is no setting.": (
        "gateway/test_settings.py::test_what_kubernetes_tells_of_a_service_is_no_setting",
        "gateway/test_settings.py::"
        "test_what_kubernetes_tells_of_services_named_like_a_setting_is_no_setting",
    ),
    "A flag of `medserve gateway` beats its variable, which beats the default.": (
        "gateway/test_settings.py::test_a_flag_beats_the_variable_and_the_variable_the_default",
    ),
}

# The same of the pages on what the gateway does besides calls.
ELSEWHERE: dict[str, dict[str, tuple[str, ...]]] = {
    "../use/page": {
        "only the session that made it sees it; to everybody else it does not exist": (
            "web/test_jobs.py::test_another_visitor_finds_nothing_under_the_id_of_a_job",
            "web/test_sessions.py::test_a_made_up_session_owns_nothing",
        ),
        "It is deleted 60 minutes after its owner last used it": (
            "web/test_jobs.py::test_a_job_is_deleted_after_its_time_unless_it_is_used",
            "web/test_jobs.py::test_the_sweeper_outlives_whatever_goes_wrong",
            "web/test_uploads.py::test_a_job_deleted_while_files_arrive_ends_the_upload",
        ),
        "when its owner logs out, and when the server stops": (
            "web/test_sessions.py::test_logging_out_deletes_what_was_sent",
            "web/test_jobs.py::test_the_page_takes_all_files_away_when_it_ends",
        ),
        "Folders of a server that was killed are taken away by the next one.": (
            "engine/test_run_folder.py::"
            "test_the_folder_of_a_killed_server_is_taken_away_by_the_next",
        ),
        "No log line holds a file's name, pixels, or what a file says of a patient.": (
            "gateway/test_fuzz.py::"
            "test_no_text_of_a_request_is_logged_counted_or_quoted_in_an_error",
            "imaging/test_payload.py::"
            "test_no_line_of_a_library_gets_out_whatever_level_it_sets_later",
            "web/test_protection.py::test_a_header_that_is_no_address_is_refused_and_nowhere_quoted",
        ),
        "they keep a foreign page from reaching yours under a name of its own": (
            "web/test_protection.py::test_the_page_answers_to_its_own_names",
        ),
        "Requests that change something are taken only from the page itself": (
            "web/test_protection.py::test_a_request_from_another_site_changes_nothing",
        ),
    },
    "operations": {
        "So that a worker can stop drawing images that nobody": (
            "gateway/test_cancelled.py::test_a_cancelled_call_is_marked_until_the_engine_has_ended_it",
            "gateway/test_cancelled.py::"
            "test_a_cancelled_call_stops_no_other_call_of_the_id_that_its_caller_chose",
        ),
    },
    "releases": {
        "Each command returns when the change is made and proven": (
            "gateway/test_versions.py::"
            "test_a_version_that_answers_its_golden_input_wrongly_is_unloaded",
        ),
        "No call fails meanwhile.": (
            "gateway/test_versions.py::test_every_call_is_answered_while_versions_take_turns",
            "serving/test_live.py::test_no_call_fails_while_two_versions_are_exchanged",
        ),
        "a restart keeps what was decided": (
            "gateway/test_versions.py::test_the_decision_outlives_a_restart",
            "gateway/test_releases.py::test_a_route_that_is_set_outlives_a_restart",
        ),
        "who names no version gets the default of the moment in which the call arrives": (
            "gateway/test_versions.py::"
            "test_a_call_is_sent_to_the_version_that_was_the_default_when_it_came",
        ),
        "the archive is damaged, altered or half copied | refused before anything starts": (
            "gateway/test_versions.py::test_an_archive_that_cannot_be_trusted_changes_nothing",
        ),
        "nobody loads code from elsewhere": (
            "gateway/test_versions.py::test_nothing_outside_the_store_can_be_named",
        ),
        "the disk is full, the store is read-only | refused; the default stays": (
            "gateway/test_versions.py::test_a_full_disk_leaves_the_default",
        ),
        "is removed | refused, with what to do first": (
            "gateway/test_versions.py::test_the_default_version_and_unknown_ones_are_not_removed",
        ),
        "An archive that cannot be used changes nothing; one line in the log says why": (
            "gateway/test_versions.py::"
            "test_a_watched_store_says_once_why_an_archive_changes_nothing",
        ),
        "A version that was rolled back is not tried again.": (
            "gateway/test_versions.py::"
            "test_a_restarted_watch_tries_what_has_come_since_and_nothing_that_was_rolled_back",
        ),
        "so each always meets the same version": (
            "gateway/test_releases.py::test_a_share_of_the_cases_gets_the_version_and_keeps_it",
        ),
        "A route to a version that does not serve leads nowhere": (
            "gateway/test_releases.py::"
            "test_a_route_to_a_version_that_does_not_serve_leads_to_the_default",
        ),
        "one that cannot be used leaves the routes of before": (
            "gateway/test_releases.py::test_a_file_that_cannot_be_used_leaves_the_routes_of_before",
        ),
        "`promote` refuses while that is more than `--allowed`": (
            "gateway/test_releases.py::test_a_version_that_differs_or_fails_is_not_promoted",
        ),
        "a change needs one that was made with `--manage`": (
            "gateway/test_versions.py::test_who_may_not_manage_a_model_changes_nothing",
        ),
        "Each change leaves a line in the [audit log]": (
            "gateway/test_versions.py::test_changes_stand_in_the_audit_log_with_their_outcome",
        ),
    },
    "watching": {
        "It keeps counts, never anything of an input.": (
            "gateway/test_watching.py::test_a_class_that_the_archive_does_not_name_becomes_no_label",
        ),
        "each image of a packed call by itself": (
            "gateway/test_watching.py::test_a_packed_answer_counts_every_image_that_was_answered",
        ),
        "a morning of nothing but hands is no drift": (
            "gateway/test_watching.py::test_one_class_alone_is_no_drift",
        ),
        "The alarm ends by itself": (
            "gateway/test_watching.py::test_an_alarm_ends_after_its_cause",
        ),
    },
    "engines": {
        "Answers are the same, byte for byte": (
            "engine/test_contract.py::test_a_call_answers_what_the_handler_returned",
        ),
        "refused with `PAYLOAD_TOO_LARGE`, its worker goes on": (
            "engine/test_direct.py::"
            "test_an_answer_above_the_largest_costs_itself_and_not_its_worker",
        ),
        "end with the gateway however that ended": (
            "engine/test_direct.py::test_workers_end_with_their_parent_however_it_ended",
        ),
        "Workers get an environment without secrets": (
            "engine/test_direct.py::test_a_worker_sees_no_secret_of_its_parent",
        ),
    },
}


def numbers() -> dict[str, float]:
    """Return every number that a module of the gateway names, and every one of its limits."""
    found: dict[str, float] = {}
    for path in sorted(GATEWAY.rglob("*.py")):
        name = ".".join(path.relative_to(GATEWAY).with_suffix("").parts)
        for constant in _constants(path):
            module = importlib.import_module(f"medserve.gateway.{name}")
            value = getattr(module, constant)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                found[f"{name}.{constant}"] = value
    for limits in (PageLimits(), RestLimits(), ShadowBudget()):
        module_name = type(limits).__module__.removeprefix("medserve.gateway.")
        for field in dataclasses.fields(limits):
            value = getattr(limits, field.name)
            found[f"{module_name}.{type(limits).__name__}.{field.name}"] = value
    return found


def _constants(path: Path) -> Iterator[str]:
    for each in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(each, ast.Assign):
            for name in ast.walk(ast.Tuple(each.targets)):
                if isinstance(name, ast.Name) and name.id.isupper():
                    yield name.id


def said(name: str, value: float) -> str:
    """Return a number as the page writes it."""
    last = name.rpartition(".")[2].lower()
    if last.endswith("_bytes"):
        for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if value % size == 0:
                return f"{value // size} {unit}"
        return f"{value} bytes"
    if last.endswith(("_s", "_ms")):
        seconds = value / 1000 if last.endswith("_ms") else value
        return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds:g} s"
    return f"{value:,}" if value >= 10_000 else str(value)


def rows() -> dict[str, str]:
    """Return the rows of the table of limits by their first cells."""
    text = PAGE.read_text(encoding="utf-8")
    table = text.partition("| resource | bound | counted by | at the bound |\n")[2]
    lines = table.partition("\n\n")[0].splitlines()[1:]
    return {line.split("|")[1].strip(): line for line in lines}


def row_of(beginning: str) -> str:
    [found] = [line for cell, line in rows().items() if cell.startswith(beginning)]
    return found


def test_every_bound_of_the_gateway_stands_on_the_page() -> None:
    found = numbers()
    bounds = {each for each in found if _BOUND.search(each.rpartition(".")[2])}
    unsaid = bounds - BOUNDS.keys() - INTERNAL
    assert not unsaid, "add each to BOUNDS with its row of the page, or to INTERNAL"
    assert found.keys() >= BOUNDS.keys() | INTERNAL


def test_every_bound_of_the_page_is_that_of_the_code() -> None:
    found = numbers()
    for name, row in BOUNDS.items():
        text = said(name, found[name])
        assert re.search(rf"(?<![\d,]){re.escape(text)}(?![\d,]\d)", row_of(row)), (name, text)


def test_every_row_of_the_page_is_held_by_a_test() -> None:
    beginnings = {cell: [each for each in ROWS if cell.startswith(each)] for cell in rows()}
    assert all(len(found) == 1 for found in beginnings.values()), beginnings
    assert {each for [each] in beginnings.values()} == ROWS.keys()


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_stands_on_the_page(promise: str) -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert promise.lower() in text.lower()


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_promise_of_another_page_stands_on_it(name: str) -> None:
    text = " ".join((PAGE.parent / f"{name}.md").read_text(encoding="utf-8").split())
    assert [each for each in ELSEWHERE[name] if each.lower() not in text.lower()] == []


def test_every_test_that_holds_a_promise_exists() -> None:
    elsewhere = (held for page in ELSEWHERE.values() for held in page.values())
    for held in (*ROWS.values(), *PROMISES.values(), *elsewhere):
        for each in held:
            path, _, name = each.partition("::")
            tree = ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8"))
            names = {
                node.name
                for node in tree.body
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            }
            assert name in names, each
