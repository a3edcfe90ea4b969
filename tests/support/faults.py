"""Faults that the tests must find, for ``python -m tests.mutants``: text of a file, its replacement, and the tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: describes the fault.
        path: of the file, from the root.
        old, new: the text that is replaced, which occurs once, and its replacement.
        tests: arguments of pytest.
    """

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]


def _of(path: str, *tests: str, **faults: tuple[str, str]) -> list[Mutant]:
    return [Mutant(name.replace("_", " "), path, old, new, tests) for name, (old, new) in faults.items()]


MUTANTS = [
    # index
    *_of(
        "hystar_fast/index/memory.py",
        "tests/index/test_memory.py",
        ties_of_the_last_place_in_any_order=("(best[:, k - 1] == best[:, k]) &", "(best[:, k - 1] < best[:, k]) &"),
        removed_vectors_are_found=("found.masked_fill_(self.masked[start : begin + len(block)], -torch.inf)", "pass"),
    ),
    *_of(
        "hystar_fast/index/claims.py",
        "tests/index/test_claims.py",
        dead_holders_keep_their_claims=("return self._silence(entry, content) >= self.stolen_after", "return False"),
        changes_of_a_claim_are_not_seen=("if earlier is None or earlier[0] != content:", "if earlier is None:"),
        two_processes_make_one_claim=("os.O_RDWR | os.O_CREAT | os.O_EXCL |", "os.O_RDWR | os.O_CREAT |"),
    ),
    *_of(
        "hystar_fast/index/load_shards.py",
        "tests/index/test_shards.py",
        shards_of_another_model_are_loaded=("check_stamps(engine.stamps(), plan.stamps, engine.uri)", "pass"),
        newer_pictures_are_replaced=("old.sha256 == row.sha256 or _is_current(settings, old):", "False:"),
        loaded_shards_are_not_remembered=("known[number] = header.tries", "pass"),
    ),
    *_of(
        "hystar_fast/index/shard_files.py",
        "tests/index/test_shards.py",
        damaged_shards_are_loaded=('if metadata["sha256"] != _sha256(', 'if "" == _sha256('),
    ),
    *_of(
        "hystar_fast/index/local_graph.py",
        "tests/index/test_local_graph.py",
        removals_leave_too_few=("if len(order) < wanted:", "if False:"),
        later_vectors_are_not_searched=(
            "matrix.search(queries, k, first=first)",
            "matrix.search(queries, k, first=matrix.size)",
        ),
    ),
    *_of(
        "hystar_fast/index/local_vectors.py",
        "tests/index/test_damage.py",
        "tests/index/test_local.py",
        vectors_are_not_checked=("if vector_checksum(row, key, vectors) != stored:", "if False:"),
        lost_vectors_are_not_seen=(
            "if (held.matrix.size, held.total) != self._file.sums(table_of(number)):",
            "if False:",
        ),
        removals_are_not_followed=("if gone:", "if False:"),
    ),
    *_of(
        "hystar_fast/index/local_write.py",
        "tests/index/test_engine_contract.py",
        vectors_of_an_earlier_content_move_along=(
            "(0, 0, None))[2] == row[rows.SHA256]}",
            "(0, 0, None))[2] is not None}",
        ),
    ),
    *_of(
        "hystar_fast/index/postgres.py",
        "tests/index/test_engine_contract.py",
        in_postgres_ties_are_in_any_order=("ORDER BY score DESC, key LIMIT", "ORDER BY score DESC LIMIT"),
    ),
    *_of(
        "hystar_fast/index/postgres_write.py",
        "tests/index/test_engine_contract.py",
        in_postgres_vectors_of_an_earlier_content_stay=("earlier[row[0]][1] != row[rows.SHA256]]", "False]"),
    ),
    *_of(
        "hystar_fast/index/postgres_database.py",
        "tests/index/test_postgres_in_use.py",
        in_postgres_a_dead_connection_is_not_replaced=("if idle is None or not isinstance", "if True or isinstance"),
    ),
    *_of(
        "hystar_fast/index/copy_index.py",
        "tests/index/test_index_kill.py",
        to_postgres_a_copy_that_was_stopped_looks_whole=(
            "{**source.settings(), COPY_OF: source.uri}",
            "source.settings()",
        ),
    ),
    *_of(
        "hystar_fast/index/sync.py",
        "tests/index/test_sync.py",
        vectors_of_another_content_are_copied=("if old.sha256 == digest and is_free:", "if is_free:"),
    ),
    *_of(
        "hystar_fast/index/stamp.py",
        "tests/index/test_stamp.py",
        another_model_is_taken=("        if fields:", "        if fields and False:"),
    ),
    # ops
    *_of(
        "hystar_fast/ops/sinkhorn/torch.py",
        "tests/ops/test_sinkhorn.py",
        "tests/ops/test_sinkhorn_grad.py",
        fallback_ignores_the_mask=("n_iter, mask=mask, grad=", "n_iter, mask=None, grad="),
        gradient_of_the_fallback_ignores_the_mask=(
            "log_kernel(cost, mask, epsilon)",
            "log_kernel(cost, None, epsilon)",
        ),
        implicit_gradient_of_the_opposite_sign=("(alpha + beta.mT)) / -epsilon", "(alpha + beta.mT)) / epsilon"),
        infeasible_problem_gets_a_gradient=("info[2] < SinkhornStatus.INFEASIBLE", "info[2] < 9"),
    ),
    *_of(
        "hystar_fast/ops/sinkhorn/cpu.py",
        "tests/ops/test_sinkhorn.py",
        one_mask_for_the_whole_batch=("expand(cost.shape).contiguous(), n * m", "expand(cost.shape).contiguous(), 0"),
    ),
    *_of(
        "hystar_fast/ops/style_nce/stream.py",
        "tests/ops/test_style_nce_stream.py",
        auto_gamma_ignored=(
            "add_gamma_(logits, forbidden, gamma), positive",
            "add_gamma_(logits, forbidden, 80.0), positive",
        ),
        mask_ignored_when_streaming=("if self.mask is not None:", "if False:"),
        gradient_without_temperature=(".mul_(dloss[part, None] / temperature)", ".mul_(dloss[part, None])"),
    ),
    *_of(
        "hystar_fast/ops/style_nce/torch.py",
        "tests/ops/test_style_nce_cpu.py",  # its path "torch" is this file
        positive_among_the_negatives=("    forbidden.fill_diagonal_(True)\n", ""),
        sample_that_is_not_finite_gets_a_loss=("loss.masked_fill_(~finite.squeeze(1), math.nan)", "pass"),
        gradient_of_the_sum_and_not_of_the_mean=("dloss / (temperature * len(q))", "dloss / temperature"),
        weights_multiplied_and_not_their_logarithm=("weight[part].log_()", "weight[part]"),
    ),
    *_of(
        "hystar_fast/ops/perturbed_topk/torch.py",
        "tests/ops/test_perturbed_topk.py",
        gradient_of_the_chosen_alone=("weight - weight.mean(1, keepdim=True)", "weight"),
        forbidden_positions_get_a_gradient=("(dscores - mean).masked_fill(forbidden, 0)", "dscores - mean"),
        gradient_divided_by_all_samples=("((samples - 1) * sigma)", "(samples * sigma)"),
    ),
    *_of(
        "hystar_fast/ops/svd_linear/materialised.py",
        "tests/ops/test_svd_linear.py",
        samples_left_in_the_order_of_their_styles=("order.argsort(), out=", "order, out="),
    ),
    *_of(
        "hystar_fast/ops/svd_linear/cpu.py",
        "tests/ops/test_svd_linear.py",
        gradient_of_a_repeated_index_overwritten=("index_add_(0, index, sums)", "index_copy_(0, index, sums)"),
    ),
    *_of(
        "hystar_fast/ops/svd_linear/cpu_rows.py",
        "tests/ops/test_svd_linear_cpu.py",
        scale_rounded_to_bfloat16=("wide = row_scale.float()", "wide = row_scale.bfloat16().float()"),
    ),
    *_of(
        "hystar_fast/ops/svd_linear/api.py",
        "tests/ops/test_svd_linear_dispatch.py",
        "tests/ops/test_svd_linear.py",
        weight_gradient_summed_in_float16=("not (needs_dscale and x.dtype == torch.float16)", "True"),
    ),
    *_of(
        "hystar_fast/ops/svd_linear/replay.py",
        "tests/ops/test_svd_linear_replay.py",
        addresses_in_another_order=(
            "own = [places[tensor.data_ptr()] for tensor in one.tensors]",
            "own = sorted(places[tensor.data_ptr()] for tensor in one.tensors)",
        ),
        two_tensors_at_one_address=("if len(places) + sum(", "if len(places) > 99 + sum("),
        product_without_its_factor=("bias_place, alpha, transposed)", "bias_place, 1.0, transposed)"),
    ),
    # nn
    *_of(
        "hystar_fast/nn/fast_svd_linear.py",
        "tests/nn/test_fast_svd_linear.py",
        "tests/nn/test_fast_svd_linear_torch.py",
        per_sample_offset_dropped=("offset = offset + delta_s", "offset = offset + 0 * delta_s"),
        static_offset_dropped=("offset: Tensor = self.delta_s_static", "offset: Tensor = 0 * self.delta_s_static"),
        offset_dropped_under_autocast=(
            "            offset = offset + delta_s",
            "            offset = offset if torch.is_autocast_enabled('cpu') else offset + delta_s",
        ),
        remainder_counted_twice=("if self.base_weight is None else (offset, None)", "if True else (offset, None)"),
        merge_forgets_the_bias=("self.bias.detach().clone()", "0 * self.bias.detach()"),
    ),
    *_of(
        "hystar_fast/nn/attention.py",
        "tests/nn/test_attention.py",
        query_and_key_swapped=("        q, k, v = self.project", "        k, q, v = self.project"),
        value_is_key=("mixed = attend(q, k, v, self", "mixed = attend(q, k, k, self"),
        scale_of_the_model_width=("q * q.shape[-1] ** -0.5", "q * (q.shape[-1] * q.shape[1]) ** -0.5"),
        mask_not_inverted=("return mask.logical_not()", "return mask"),
        split_keys_loaded_in_another_order=(
            '("q_proj.weight", "k_proj.weight", "v_proj.weight")',
            '("k_proj.weight", "q_proj.weight", "v_proj.weight")',
        ),
    ),
    *_of(
        "hystar_fast/nn/hypernetwork.py",
        "tests/nn/test_hypernetwork.py",
        relu_after_the_last_layer=(
            "return apply_linear(self.layers[-1], z)",
            "return torch.relu(apply_linear(self.layers[-1], z))",
        ),
        zero_start_ignored=('self.init == "zero" and name', 'self.init == "none" and name'),
    ),
    *_of(
        "hystar_fast/nn/factors.py",
        "tests/nn/test_factors.py",
        signs_not_fixed=("(u * signs)[:, :rank]", "u[:, :rank]"),
        damaged_cache_is_used=(
            'if not torch.equal(stored["checksum"], _checksum(path, factors))',
            "if False",
        ),
        smallest_singular_values_kept=("s[:rank], (vh", "s[-rank:], (vh"),
    ),
    *_of(
        "hystar_fast/nn/losses.py",
        "tests/nn/test_losses.py",
        mask_ignored=("return negatives if mask is None else negatives & ~mask", "return negatives"),
        hardest_is_the_easiest=("hardest = F.one_hot(score.argmax(1)", "hardest = F.one_hot(score.argmin(1)"),
    ),
    *_of(
        "hystar_fast/nn/inject.py",
        "tests/nn/test_inject.py",
        shared_layer_replaced_twice=(
            "set_submodule(name, replacements[linear])",
            "set_submodule(name, replacement(linear))",
        ),
    ),
    # models
    *_of(
        "hystar_fast/models/hystar.py",
        "tests/models/test_hystar.py",
        "tests/models/test_hystar_designs.py",
        "tests/models/test_hystar_checkpoint.py",
        embedding_not_normalised=(
            "return F.normalize(self.backbone.encode_text(tokens), dim=-1)",
            "return self.backbone.encode_text(tokens)",
        ),
        given_style_ignored=(
            "        if style is None:\n            style, resume",
            "        if True:\n            style, resume",
        ),
        merged_model_saved=("        if self._is_merged:\n", "        if False:\n"),
        learning_rates_swapped=('"params": static, "lr": static_lr', '"params": static, "lr": dynamic_lr'),
    ),
    *_of(
        "hystar_fast/models/backbone_identity.py",
        "tests/models/test_hystar_checkpoint.py",
        another_backbone_accepted=("if are_same_weights(wanted", "if True or are_same_weights(wanted"),
    ),
    *_of(
        "hystar_fast/models/backbones/tower.py",
        "tests/models/test_backbone_kinds.py",
        "tests/models/test_hystar.py",
        "tests/models/test_hystar_designs.py",
        block_numbers_off_by_one=("start=done + 1):", "start=done):"),
        offsets_of_the_mlp_dropped=("delta_s.get(number), mlp_delta_s.get(number)", "delta_s.get(number), None"),
    ),
    *_of(
        "hystar_fast/models/backbones/transformers.py",
        "tests/models/test_backbone_kinds.py",
        "tests/models/test_backbones_transformers.py",
        query_and_key_swapped_in_the_split=(
            '_SPLIT = ("q_proj", "k_proj", "v_proj")',
            '_SPLIT = ("k_proj", "q_proj", "v_proj")',
        ),
        query_and_key_swapped_in_attention=("query, key, value = (part", "key, query, value = (part"),
    ),
    *_of(
        "hystar_fast/models/adapter_format.py",
        "tests/models/test_fingerprint.py",
        "tests/models/test_hystar_checkpoint.py",
        fingerprint_blind_outside_its_sample=(
            "_hash_in_chunks(bytes_of(flat), pool)",
            "_hash_in_chunks(bytes_of(flat[:9]), pool)",
        ),
        files_of_two_saves_accepted=("if hashlib.sha256(content).hexdigest() != ", "if '' == "),
    ),
    # data, retrieval, methods, train, experiments
    *_of(
        "hystar_fast/retrieval/metrics.py",
        "tests/retrieval/test_metrics.py",
        ties_counted_for_the_query=("counted = (found >= threshold)", "counted = (found > threshold + 2 * TIE)"),
        non_finite_target_ranks_first=("| ~own.isfinite()", ""),
        target_counted_against_itself=("counted[rows, local[rows]] = False", "pass"),
        recall_off_by_one=("(ranks < k).double()", "(ranks <= k).double()"),
        conditions_weighted_by_their_size=(
            "nanmean(dim=1))",
            "nanmean(dim=1) * 0 + (counts @ filled.mT).sum(1) / (counts @ present.mT).sum(1))",
        ),
        interval_of_another_level=("[0.025, 0.975]", "[0.05, 0.95]"),
    ),
    *_of(
        "hystar_fast/retrieval/relevant_ranks.py",
        "tests/retrieval/test_definitions.py",
        ties_of_relevant_items_counted_for_the_query=("thresholds = (relevant - TIE)", "thresholds = (relevant + TIE)"),
    ),
    *_of(
        "hystar_fast/retrieval/ranks.py",
        "tests/retrieval/test_evaluate.py",
        "tests/experiments/test_seeds.py",
        unseen_categories_inverted=("return table[:, self.ids.unseen]", "return table[:, ~self.ids.unseen]"),
    ),
    *_of(
        "hystar_fast/data/dsr.py",
        "tests/data/test_layouts.py",
        training_split_read_as_test=('root / f"{split}.json"', 'root / "train.json"'),
    ),
    *_of(
        "hystar_fast/data/whole_files.py",
        "tests/data/test_whole_files.py",
        changed_json_accepted=("stored is not None and stored != _checksum(values)", "False"),
        old_file_written_in_place=("os.replace(temporary, place)", "place.write_bytes(temporary.read_bytes())"),
    ),
    *_of(
        "hystar_fast/data/folder_lock.py",
        "tests/data/test_folder_lock.py",
        lock_is_shared=("fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB"),
    ),
    *_of(
        "hystar_fast/train/checkpoint.py",
        "tests/train/test_damaged_state.py",
        damaged_checkpoint_accepted=("if hashlib.sha256(archive).hexdigest().encode() != digest:", "if False:"),
    ),
    *_of(
        "hystar_fast/data/hold_out.py",
        "tests/train/test_pairs.py",
        "tests/train/test_validation.py",
        "tests/experiments/test_splits.py",
        pictures_of_one_instance_divided=("record.instance or record.path", "record.path"),
    ),
    *_of(
        "hystar_fast/train/step.py",
        "tests/train/test_train_step.py",
        unreadable_pictures_are_trained_on=("usable=", "usable=~"),
    ),
]
