// SPDX-License-Identifier: GPL-2.0-only
/* A module with one of everything that the kernel's loader looks at. */
#include <linux/jump_label.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

static int level = 1;
module_param(level, int, 0644);
MODULE_PARM_DESC(level, "a number");
static char *title = "rich";
module_param(title, charp, 0444);

static DEFINE_PER_CPU(unsigned long, kt_count);
static DEFINE_STATIC_KEY_FALSE(kt_key);
static DEFINE_SPINLOCK(kt_lock);
static const char *const kt_words[] = { "zero", "one", "two", "three", "four", "five", "six", "seven" };
static int (*kt_hook)(int number) __ro_after_init;

int kt_rich_choose(int number)
{
	switch (number) {
	case 0:
		return 3;
	case 1:
		return 14;
	case 2:
		return level;
	case 3:
		return num_online_cpus();
	case 4:
		return strlen(title);
	case 5:
		return raw_smp_processor_id();
	}
	return -1;
}
EXPORT_SYMBOL(kt_rich_choose);

const char *kt_rich_word(unsigned int number)
{
	if (WARN_ON_ONCE(number >= ARRAY_SIZE(kt_words)))
		return NULL;
	return kt_words[number];
}
EXPORT_SYMBOL_GPL(kt_rich_word);

static void kt_rich_work(struct work_struct *work)
{
	spin_lock(&kt_lock);
	this_cpu_inc(kt_count);
	spin_unlock(&kt_lock);
}
static DECLARE_WORK(kt_work, kt_rich_work);

static int __init kt_rich_init(void)
{
	unsigned long seen = 0;
	int i;

	kt_hook = kt_rich_choose;
	for (i = 0; i < 7; i++)
		seen += kt_hook(i) + !!kt_rich_word(i);
	if (static_branch_unlikely(&kt_key))
		pr_info("the key is on\n");
	pr_debug("%lu\n", seen);
	schedule_work(&kt_work);
	flush_work(&kt_work);
	return 0;
}

static void __exit kt_rich_exit(void)
{
	cancel_work_sync(&kt_work);
}

module_init(kt_rich_init);
module_exit(kt_rich_exit);
MODULE_DESCRIPTION("Test module: one of everything");
MODULE_LICENSE("GPL");
MODULE_VERSION("1.0");
